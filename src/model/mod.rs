//! Floor 2: a model's files, checked, and its plain forward.
//!
//! | file | what it holds |
//! |---|---|
//! | `source` | a directory or a hub id to a directory |
//! | `bundled` | the model that is in the program |
//! | `config` | the shape of an encoder, from `config.json` |
//! | `weights` | every tensor by its role, shape-checked, none missing or left over |
//! | `manifest` | name, version, sha256 and licence |
//! | `export` | the same files, written |
//! | `forward` | the reference forward: f32, candle, packed pairs |

mod bundled;
mod config;
mod export;
mod forward;
mod manifest;
mod source;
mod weights;

pub use bundled::BUNDLED;
pub use config::{BatchError, Encoder, Family};
pub use forward::{Forward, ForwardError};
pub use manifest::{Calibration, Manifest};
pub use source::{Place, locate};
pub use weights::{Layer, Linear, Norm, Weights};

use crate::base::hex;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
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
    /// The content of its `tokenizer.json`.
    pub tokenizer: Cow<'static, [u8]>,
    /// Names all that its logits depend on: a hash of configuration, tokenizer and weights.
    pub identity: String,
}

/// The contents of a model's files.
struct Files {
    config: Cow<'static, [u8]>,
    tokenizer: Cow<'static, [u8]>,
    weights: Cow<'static, [u8]>,
    /// `podium.json`, which may be missing.
    papers: Option<Cow<'static, [u8]>>,
}

impl Model {
    /// Reads and checks a directory in Hugging Face layout: `config.json`, `tokenizer.json` and
    /// `model.safetensors`.
    ///
    /// # Errors
    /// [`ModelError`], which names the file and, where one is to blame, the key or the tensor.
    pub fn open(directory: &Path) -> Result<Self, ModelError> {
        let file = |name: &str| read(&directory.join(name)).map(Cow::Owned);
        let papers = match file("podium.json") {
            Err(ModelError::Missing { .. }) => None,
            result => Some(result?),
        };
        let (config, tokenizer) = (file("config.json")?, file("tokenizer.json")?);
        let files = Files { config, tokenizer, weights: file("model.safetensors")?, papers };
        Self::parse(directory, files)
    }

    fn parse(directory: &Path, files: Files) -> Result<Self, ModelError> {
        let encoder = Encoder::parse(&files.config, &directory.join("config.json"))?;
        let manifest = Manifest::parse(files.papers.as_deref(), directory, &files.weights)?;
        let weights = Weights::parse(&files.weights, &encoder).map_err(|reason| ModelError::Unusable {
            path: directory.join("model.safetensors"),
            reason: reason.to_string(),
        })?;
        let hashed = Sha256::new()
            .chain_update(Sha256::digest(&files.config))
            .chain_update(Sha256::digest(&files.tokenizer))
            .chain_update(&manifest.sha256)
            .finalize();
        Ok(Self { encoder, weights, manifest, tokenizer: files.tokenizer, identity: hex(&hashed[..8]) })
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
