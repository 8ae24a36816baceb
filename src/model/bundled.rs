//! The bundled model: a student of `ms-marco-MiniLM-L-12-v2`, from `models/`.

use super::Model;
use super::directory::{Files, Shards};
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
        let files = Files {
            config: file!("config.json"),
            tokenizer: file!("tokenizer.json"),
            weights: Shards::one(file!("model.safetensors")),
            papers: Some(file!("podium.json")),
            tokens_max: None,
        };
        Self::parse(Path::new(BUNDLED), files).expect("the bundled model is whole, or its test would fail")
    }
}
