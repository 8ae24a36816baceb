//! Floor 2: a model's files, checked, and its plain forward.
//!
//! | file | what it holds |
//! |---|---|
//! | `source` | a directory or a hub id to a directory |
//! | `config` | the shape of an encoder, from `config.json` |
//! | `weights` | every tensor by its role, shape-checked, none missing or left over |
//! | `manifest` | name, version, sha256 and licence |
//! | `forward` | the reference forward: f32, candle, packed pairs |

mod config;
mod forward;
mod manifest;
mod source;
mod weights;

pub use config::{BatchError, Encoder, Family};
pub use forward::{Forward, ForwardError};
pub use manifest::{Calibration, Manifest};
pub use source::{Place, locate};
pub use weights::{Layer, Linear, Norm, Weights};

use std::path::{Path, PathBuf};
use thiserror::Error;

/// A model whose files were read and checked.
#[derive(Debug)]
pub struct Model {
    /// Its shape.
    pub encoder: Encoder,
    /// Its tensors.
    pub weights: Weights,
    /// Where it comes from.
    pub manifest: Manifest,
    /// Its `tokenizer.json`.
    pub tokenizer: PathBuf,
}

impl Model {
    /// Reads and checks a directory in Hugging Face layout: `config.json`, `tokenizer.json` and
    /// `model.safetensors`.
    ///
    /// # Errors
    /// [`ModelError`], which names the file and, where one is to blame, the key or the tensor.
    pub fn open(directory: &Path) -> Result<Self, ModelError> {
        let tokenizer = directory.join("tokenizer.json");
        if !tokenizer.is_file() {
            return Err(ModelError::Missing { path: tokenizer });
        }
        let encoder = Encoder::read(&directory.join("config.json"))?;
        let path = directory.join("model.safetensors");
        let bytes = read(&path)?;
        let manifest = Manifest::read(directory, &bytes)?;
        let weights = Weights::parse(&bytes, &encoder)
            .map_err(|reason| ModelError::Unusable { path, reason: reason.to_string() })?;
        Ok(Self { encoder, weights, manifest, tokenizer })
    }
}

/// A model that cannot be served, and why.
#[derive(Debug, Error)]
pub enum ModelError {
    /// A file is not there.
    #[error("{} is missing; a model directory holds config.json, tokenizer.json and model.safetensors", .path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be read.
    #[error("{} cannot be read: {reason}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// A file's content cannot be served.
    #[error("{}: {reason}", .path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A hub id has no files here, and none could be fetched.
    #[error(
        "model `{id}` is neither a directory nor in the hub cache, and cannot be fetched ({reason}); \
         give a directory with config.json, tokenizer.json and model.safetensors, or fetch it where \
         there is a network and copy the cache ($HF_HOME)"
    )]
    Unfetched {
        /// The id.
        id: String,
        /// Why.
        reason: String,
    },
}

fn read(path: &Path) -> Result<Vec<u8>, ModelError> {
    std::fs::read(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => ModelError::Missing { path: path.to_owned() },
        _ => ModelError::Unreadable { path: path.to_owned(), reason: error.to_string() },
    })
}
