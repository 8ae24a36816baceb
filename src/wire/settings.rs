//! What a server accepts, and by which paths.

use super::{Pins, Place};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a server accepts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Most documents of a request. Bounds what one caller can ask for at once.
    pub documents_max: usize,
    /// Whether unknown fields are errors; else they are named in a warning.
    pub strict: bool,
    /// What stands before every path, `/podium` for example; paths are found without it as well.
    pub base_path: String,
    /// More paths, each with the one that it stands for.
    pub aliases: BTreeMap<String, String>,
    /// Dialects of the paths that serve several.
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
    /// Checks what types cannot say.
    ///
    /// # Errors
    /// Names the key and what it may be.
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

    /// A request's path as the dialects know it: without the base path and without a slash at its end, and
    /// what an alias stands for.
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
