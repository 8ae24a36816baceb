//! A model's origin: name, version, checksum, licence.

use super::ModelError;
use super::arch::Label;
use super::prompt::DeclaredPrompt;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// A model's manifest. `podium.json` in its directory states it; missing parts are derived from the directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The name under which it is served.
    pub name: String,
    /// sha256 of `model.safetensors`, or of its shards one after the other, and of its modules' weights, in hex. Empty if they
    /// were not read.
    pub sha256: String,
    /// An SPDX name, or `unknown`.
    pub licence: String,
    /// Maps its logits to another model's scale.
    pub calibration: Calibration,
    /// Whether int8 keeps its order, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub int8: Option<bool>,
}

/// A linear map from one model's logits to another's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// The slope; positive, so that it keeps the order.
    pub scale: f32,
    /// The offset.
    pub offset: f32,
}

impl Calibration {
    /// The logit on the other model's scale.
    pub fn apply(self, logit: f32) -> f32 {
        self.scale * logit + self.offset
    }
}

impl Default for Calibration {
    fn default() -> Self {
        Self { scale: 1.0, offset: 0.0 }
    }
}

/// `podium.json`.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Stated {
    name: Option<String>,
    sha256: Option<String>,
    licence: Option<String>,
    calibration: Calibration,
    int8: Option<bool>,
    label: Option<Label>,
    prompt: Option<DeclaredPrompt>,
}

/// The part of `podium.json` that is needed before weights are read.
#[derive(Default)]
pub(super) struct Declared {
    /// The label that is the score.
    pub label: Option<Label>,
    /// Whether int8 keeps the model's order.
    pub int8: Option<bool>,
    /// The prompt of a decoder.
    pub prompt: Option<DeclaredPrompt>,
}

impl Declared {
    /// Reads it of a `podium.json`.
    ///
    /// # Errors
    /// An invalid `podium.json`.
    pub fn parse(papers: Option<&[u8]>, directory: &Path) -> Result<Self, ModelError> {
        let Stated { label, int8, prompt, .. } = stated(papers, directory)?;
        Ok(Self { label, int8, prompt })
    }
}

fn stated(papers: Option<&[u8]>, directory: &Path) -> Result<Stated, ModelError> {
    let unusable = |error: serde_json::Error| ModelError::Unusable {
        path: directory.join("podium.json"),
        reason: error.to_string(),
    };
    papers.map_or_else(|| Ok(Stated::default()), |papers| serde_json::from_slice(papers).map_err(unusable))
}

impl Manifest {
    /// Checks `podium.json`, if there is one, against the sha256 of the weights, and derives the missing parts from the directory.
    ///
    /// # Errors
    /// An invalid `podium.json`, or another checksum.
    pub(super) fn parse(
        papers: Option<&[u8]>,
        directory: &Path,
        sha256: Option<String>,
    ) -> Result<Self, ModelError> {
        let path = directory.join("podium.json");
        let unusable = |reason: String| ModelError::Unusable { path: path.clone(), reason };
        let stated = stated(papers, directory)?;
        if let (Some(sha256), Some(expected)) = (&sha256, stated.sha256)
            && *sha256 != expected
        {
            return Err(unusable(format!("sha256 of the weights is {sha256}, and {expected} is stated")));
        }
        let scale = stated.calibration.scale;
        if !(scale.is_finite() && scale > 0.0 && stated.calibration.offset.is_finite()) {
            return Err(unusable("calibration: scale must be positive, and both finite".to_owned()));
        }
        Ok(Self {
            name: stated.name.unwrap_or_else(|| name_of(directory)),
            sha256: sha256.unwrap_or_default(),
            licence: stated.licence.unwrap_or_else(|| licence_of(directory)),
            calibration: stated.calibration,
            int8: stated.int8,
        })
    }

    /// The first 12 hex digits of the checksum; `unread` if the weights were not read.
    pub fn version(&self) -> &str {
        self.sha256.get(..12).unwrap_or("unread")
    }
}

/// The name of the directory; for a hub cache (`models--owner--name/snapshots/revision`) the hub id.
fn name_of(directory: &Path) -> String {
    let hub = directory.ancestors().nth(2).and_then(Path::file_name).and_then(|name| name.to_str());
    if let Some(id) = hub.and_then(|name| name.strip_prefix("models--")) {
        return id.replace("--", "/");
    }
    let whole = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
    whole.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// The licence in a model card's header, or that of a licence file.
fn licence_of(directory: &Path) -> String {
    let card = std::fs::read_to_string(directory.join("README.md")).unwrap_or_default();
    let header = card.strip_prefix("---").and_then(|rest| rest.split("\n---").next()).unwrap_or_default();
    if let Some(named) = header.lines().find_map(|line| line.strip_prefix("license:")) {
        return named.trim().to_owned();
    }
    let text = std::fs::read_to_string(directory.join("LICENSE")).unwrap_or_default();
    let known = [
        ("Apache License", "Apache-2.0"),
        ("MIT License", "MIT"),
        ("Permission is hereby granted, free of charge", "MIT"),
    ];
    let found = known.iter().find(|(mark, _)| text.contains(mark));
    found.map_or("unknown", |(_, name)| name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::write;

    #[test]
    fn what_is_not_stated_is_worked_out() {
        let place = tempfile::tempdir().unwrap();
        let model = place.path().join("tiny");
        std::fs::create_dir(&model).unwrap();
        write(model.join("README.md"), "---\nlanguage: en\nlicense: mit\n---\n# Tiny\n").unwrap();
        let manifest = Manifest::parse(None, &model, Some("9a129038d9a0c4".to_owned())).unwrap();
        assert_eq!((manifest.name.as_str(), manifest.licence.as_str()), ("tiny", "mit"));
        assert_eq!(manifest.version(), "9a129038d9a0");
    }

    #[test]
    fn another_checksum_than_stated_is_an_error() {
        let error = Manifest::parse(Some(br#"{"sha256": "00"}"#), Path::new("x"), Some("01".to_owned()));
        let error = error.unwrap_err().to_string();
        assert!(error.contains("and 00 is stated"), "{error}");
    }

    #[test]
    fn a_calibration_that_turns_the_order_round_is_an_error() {
        let papers = br#"{"calibration": {"scale": -1, "offset": 0}}"#;
        let error = Manifest::parse(Some(papers), Path::new("x"), None).unwrap_err().to_string();
        assert!(error.contains("calibration"), "{error}");
    }

    #[test]
    fn a_hub_cache_gives_its_id() {
        assert_eq!(name_of(Path::new("hub/models--owner--name/snapshots/abc")), "owner/name");
    }
}
