//! The configuration of the dialects: limits, paths and pins.

use super::{Pins, Place};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The configuration of the dialects.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Most documents of a request. Bounds the work of one request.
    pub documents_max: usize,
    /// Whether unknown fields are errors; otherwise a warning names them.
    pub strict: bool,
    /// A prefix of all paths, for example `/podium`. Paths without it work too.
    pub base_path: String,
    /// Additional paths, each with the path that it stands for.
    pub aliases: BTreeMap<String, String>,
    /// Pins of paths that several dialects share.
    pub pins: Pins,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            documents_max: 10_000,
            strict: false,
            base_path: String::new(),
            aliases: BTreeMap::new(),
            pins: Pins::default(),
        }
    }
}

impl Settings {
    /// Checks the values.
    ///
    /// # Errors
    /// Names the key and its possible values.
    pub fn check(&self) -> Result<(), String> {
        self.pins.check().map_err(|message| format!("pins.{message}"))?;
        let base = &self.base_path;
        if !base.is_empty() && (!base.starts_with('/') || base.ends_with('/')) {
            return Err(format!("base_path: `{base}` must begin with a slash, and not end with one"));
        }
        for (alias, path) in &self.aliases {
            if !alias.starts_with('/') || Place::of(path).is_none() {
                return Err(format!(
                    "aliases: `{alias}` must begin with a slash, and `{path}` be a path that ranks"
                ));
            }
        }
        Ok(())
    }

    /// The canonical path of a request: without the base path and without a slash at its end. An alias is replaced by its
    /// path.
    pub fn canonical<'a>(&'a self, path: &'a str) -> &'a str {
        let rest =
            path.strip_prefix(&*self.base_path).filter(|rest| rest.is_empty() || rest.starts_with('/'));
        let path = match rest.unwrap_or(path).trim_end_matches('/') {
            "" => "/",
            path => path,
        };
        self.aliases.get(path).map_or(path, String::as_str)
    }
}
