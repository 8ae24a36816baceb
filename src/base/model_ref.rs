//! The name of a model, with or without a version: `name` or `name@version`.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// A model, and optionally its version, as a request, a route or a path names them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelRef {
    /// The model's name; may have slashes.
    pub name: String,
    /// The version, if one is named.
    pub version: Option<String>,
}

impl ModelRef {
    /// What separates a name from a version.
    pub const SEPARATOR: char = '@';
}

impl FromStr for ModelRef {
    type Err = String;

    /// Parses `name` or `name@version`. The last `@` separates them.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, version) = match text.rsplit_once(Self::SEPARATOR) {
            Some((name, version)) => (name, Some(version)),
            None => (text, None),
        };
        if name.is_empty() {
            return Err(format!("`{text}` names no model"));
        }
        if name.contains(Self::SEPARATOR) {
            return Err(format!("`{text}` has more than one `@`; write name@version"));
        }
        match version {
            Some("") => Err(format!("`{text}` has no version after the `@`")),
            version => Ok(Self { name: name.to_owned(), version: version.map(str::to_owned) }),
        }
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Some(version) => write!(f, "{}{}{version}", self.name, Self::SEPARATOR),
            None => f.write_str(&self.name),
        }
    }
}

impl Serialize for ModelRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ModelRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_is_written() {
        for (text, name, version) in [
            ("m", "m", None),
            ("owner/m", "owner/m", None),
            ("m@3", "m", Some("3")),
            ("owner/m@main", "owner/m", Some("main")),
            ("m@9a129038d9a0", "m", Some("9a129038d9a0")),
        ] {
            let found: ModelRef = text.parse().unwrap();
            assert_eq!((found.name.as_str(), found.version.as_deref()), (name, version));
            assert_eq!(found.to_string(), text);
            assert_eq!(serde_json::from_value::<ModelRef>(serde_json::json!(found)).unwrap(), found);
        }
    }

    #[test]
    fn a_name_that_lacks_a_part_is_an_error() {
        for (text, expected) in [
            ("", "`` names no model"),
            ("@3", "`@3` names no model"),
            ("m@", "`m@` has no version after the `@`"),
            ("m@1@2", "`m@1@2` has more than one `@`; write name@version"),
        ] {
            assert_eq!(text.parse::<ModelRef>(), Err(expected.to_owned()));
        }
    }
}
