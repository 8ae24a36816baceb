//! Floor 2: a model's files, checked, and its plain forward.
//!
//! | file | what it holds |
//! |---|---|
//! | `source` | a directory or a hub id to a directory |
//! | `directory` | the files of a directory as it is found: shards, a vocabulary alone, or what to do first |
//! | `vocabulary` | a `tokenizer.json` for BERT's `vocab.txt` |
//! | `bundled` | the model that is in the program |
//! | `plan` | one model as data: its parts and tensors |
//! | `tensor` | tensors by their names in the files, maps and norms |
//! | `arch` | the architectures: a plan from `config.json` |
//! | `weights` | the values of a plan's tensors, shape-checked, none missing or left over |
//! | `manifest` | name, version, sha256 and licence |
//! | `fit` | what a model's pairs must fit into |
//! | `export` | the same files, written |
//! | `forward` | the reference forward: f32, candle, packed pairs |

mod arch;
mod bundled;
mod directory;
mod export;
mod fit;
mod forward;
mod manifest;
mod plan;
mod source;
mod tensor;
mod vocabulary;
mod weights;

pub use arch::{Bert, Family, describe};
pub use bundled::BUNDLED;
pub use fit::fit;
pub use forward::{Forward, ForwardError};
pub use manifest::{Calibration, Manifest};
pub use plan::{
    Activation, Attention, BatchError, Block, Embed, FeedForward, Gelu, Head, Linear, Norm, NormKind, Norms,
    Part, Plan, Pool, Positions, Reach, Rope, Score, Tensor,
};
pub use source::{Place, locate};
pub use weights::WeightError;

use crate::base::hex;
use directory::Files;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// A model whose files were read and checked.
#[derive(Debug)]
pub struct Model {
    /// Its parts, with their tensors.
    pub plan: Plan,
    /// Where it comes from.
    pub manifest: Manifest,
    /// The content of its `tokenizer.json`.
    pub tokenizer: Cow<'static, [u8]>,
    /// The longest pair that it reads, special tokens included: as long as it has positions, or less where
    /// `tokenizer_config.json` (`model_max_length`) or `sentence_bert_config.json` (`max_seq_length`) says so.
    pub pair_tokens_max: u32,
    /// Names all that its logits depend on: a hash of configuration, tokenizer, weights and the longest pair.
    pub identity: String,
}

impl Model {
    /// Reads and checks a directory in Hugging Face layout: `config.json`; `tokenizer.json`, or BERT's `vocab.txt`;
    /// `model.safetensors`, or shards with their `model.safetensors.index.json`.
    ///
    /// # Errors
    /// [`ModelError`], which names the file and, where one is to blame, the key or the tensor.
    pub fn open(directory: &Path) -> Result<Self, ModelError> {
        Self::parse(directory, directory::files(directory)?)
    }

    fn parse(directory: &Path, files: Files) -> Result<Self, ModelError> {
        let mut plan = describe(&files.config, &directory.join("config.json"))?;
        let manifest = Manifest::parse(files.papers.as_deref(), directory, &files.weights)?;
        plan.fill_from(&files.weights).map_err(|reason| ModelError::Unusable {
            path: directory.join(files.weights.listed_in()),
            reason: reason.to_string(),
        })?;
        let positions = plan.tokens_max;
        let pair_tokens_max = files.tokens_max.map_or(positions, |stated| stated.min(positions));
        let mut hashed = Sha256::new()
            .chain_update(Sha256::digest(&files.config))
            .chain_update(Sha256::digest(&files.tokenizer))
            .chain_update(&manifest.sha256);
        if pair_tokens_max < positions {
            hashed.update(pair_tokens_max.to_le_bytes());
        }
        let identity = hex(&hashed.finalize()[..8]);
        Ok(Self { plan, manifest, tokenizer: files.tokenizer, pair_tokens_max, identity })
    }
}

/// A model that cannot be served: why, and what to do.
#[derive(Debug, Error)]
pub enum ModelError {
    /// A file is not there.
    #[error(
        "{} is missing; copy or fetch it: a model directory holds config.json, tokenizer.json (or BERT's vocab.txt) and \
         model.safetensors (or its shards with model.safetensors.index.json)",
        .path.display()
    )]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A shard is not there.
    #[error("{} is missing, and model.safetensors.index.json names it; copy or fetch it too", .path.display())]
    MissingShard {
        /// The shard.
        path: PathBuf,
    },
    /// There is no such directory.
    #[error(
        "{}; give a directory with config.json, tokenizer.json and model.safetensors, a hub id as owner/name or \
         owner/name@revision, or `bundled`",
        no_directory(.path)
    )]
    NoDirectory {
        /// What was given.
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
    /// Git LFS has left its pointer in the place of a file.
    #[error(
        "{} is a pointer of Git LFS, not the file itself; run `git lfs pull` in {}",
        .path.display(), .path.parent().unwrap_or(.path).display()
    )]
    LfsPointer {
        /// The file.
        path: PathBuf,
    },
    /// The weights are a pickle.
    #[error(
        "{} has {found} and no model.safetensors; loading a pickle runs the code in it, so it is not read; convert it: \
         python -c \"from transformers import AutoModelForSequenceClassification as M; \
         M.from_pretrained('{}').save_pretrained('{}')\"",
        .directory.display(), .directory.display(), .directory.display()
    )]
    Pickled {
        /// The directory.
        directory: PathBuf,
        /// The pickle.
        found: &'static str,
    },
    /// There is no `tokenizer.json`, and none can be made of what there is.
    #[error(
        "{}: {reason}; write tokenizer.json: python -c \"from transformers import AutoTokenizer as T; \
         T.from_pretrained('{}').save_pretrained('{}')\"",
        .directory.display(), .directory.display(), .directory.display()
    )]
    Tokenizer {
        /// The directory.
        directory: PathBuf,
        /// Why none can be made.
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

fn no_directory(path: &Path) -> String {
    match path.is_file() {
        true => format!("{} is a file, and a model is a directory", path.display()),
        false => format!("there is no directory {}", path.display()),
    }
}
