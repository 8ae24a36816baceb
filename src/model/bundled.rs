//! The bundled model: a student of `ms-marco-MiniLM-L-12-v2`, from `models/`.

use super::directory::{Files, Parts, Shards};
use super::prompt::PromptFiles;
use std::borrow::Cow;

/// The name of the bundled model, allowed instead of a directory or hub id.
pub const BUNDLED: &str = "bundled";

macro_rules! file {
    ($name:literal) => {
        Cow::Borrowed(include_bytes!(concat!("../../models/podium-student-L2-H128/", $name)).as_slice())
    };
}

/// Its golden pairs.
pub(super) const GOLDEN: &[u8] = include_bytes!("../../models/podium-student-L2-H128/golden.json");

/// Its files.
pub(super) fn files() -> Files {
    let parts = Parts {
        config: file!("config.json"),
        papers: Some(file!("podium.json")),
        modules: Vec::new(),
        modules_read: Vec::new(),
        weights: Shards::one(file!("model.safetensors")),
    };
    Files { parts, tokenizer: file!("tokenizer.json"), tokens_max: None, prompt: PromptFiles::default() }
}
