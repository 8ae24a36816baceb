//! The bundled model: a student of `ms-marco-MiniLM-L-12-v2`, from `models/`.

use super::Model;
use super::directory::{Files, Parts, Shards};
use super::prompt::PromptFiles;
use std::borrow::Cow;
use std::path::Path;

/// The name of the bundled model, allowed instead of a directory or hub id.
pub const BUNDLED: &str = "bundled";

macro_rules! file {
    ($name:literal) => {
        Cow::Borrowed(include_bytes!(concat!("../../models/podium-student-L2-H128/", $name)).as_slice())
    };
}

impl Model {
    /// The bundled model.
    pub fn bundled() -> Self {
        let parts = Parts {
            config: file!("config.json"),
            papers: Some(file!("podium.json")),
            modules: Vec::new(),
            modules_read: Vec::new(),
            weights: Shards::one(file!("model.safetensors")),
        };
        let prompt = PromptFiles::default();
        let golden = Some(file!("golden.json"));
        let files = Files { parts, tokenizer: file!("tokenizer.json"), tokens_max: None, prompt, golden };
        Self::parse(Path::new(BUNDLED), files).expect("the bundled model is whole, or its test would fail")
    }
}
