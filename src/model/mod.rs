//! Floor 2: a model's files, checked, and its plain forward.
//!
//! | file | what it holds |
//! |---|---|
//! | `unread` | a model by the headers of its files, before its weights are read |
//! | `source` | a directory or a hub id to a directory |
//! | `repository` | a folder of models with versions: what can be used, what is served, what has changed |
//! | `directory` | the files of a directory as it is found: shards, a vocabulary alone, or what to do first |
//! | `vocabulary` | a `tokenizer.json` for BERT's `vocab.txt` |
//! | `bundled` | the model that is in the program |
//! | `golden` | texts with the scores that a model must give them |
//! | `plan` | one model as data: its parts and tensors |
//! | `stored` | tensors as they lie in a model's files, read one at a time |
//! | `tensor` | tensors by their names in the files, maps and norms |
//! | `arch` | the architectures: a plan from `config.json` |
//! | `prompt` | the prompt of a decoder: declared, its own chat template, or a known one |
//! | `known` | the known prompts |
//! | `weights` | the values of a plan's tensors, shape-checked, none missing or left over |
//! | `manifest` | name, version, sha256 and licence |
//! | `fit` | what a model's pairs must fit into |
//! | `export` | the same files, written |
//! | `forward` | the reference forward: f32, candle, packed pairs |
//! | `positions` | the reference\'s rotary and relative positions, and masks |

mod arch;
mod bundled;
mod directory;
mod export;
mod fit;
mod forward;
mod golden;
mod known;
mod manifest;
mod plan;
mod positions;
mod prompt;
pub mod repository;
mod source;
mod stored;
mod tensor;
mod unread;
mod vocabulary;
mod weights;

pub use arch::{Bert, Family};
pub use bundled::BUNDLED;
pub use fit::fit;
pub use forward::{Forward, ForwardError};
pub use golden::{Expected, Golden, GoldenPair};
pub use manifest::{Calibration, Manifest};
pub use plan::{
    Activation, Attention, BatchError, Block, Embed, FeedForward, Gelu, Head, Linear, Norm, NormKind, Norms,
    Part, Plan, Pool, Positions, Reach, Relative, RelativeMaps, Rope, Score, Tensor,
};
pub use source::{Place, locate};
pub use stored::{FileChanged, Stored};
pub use unread::UnreadModel;
pub use weights::WeightError;

use crate::token::{Prompt, Tokenizer, TokenizerError};
use arch::{Fault, Source};
use directory::{Parts, Shards};
use manifest::Declared;
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
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
    /// The prompt around a query and a document; the tokenizer's special tokens if there is none.
    pub prompt: Option<Prompt>,
    /// The tokenizer for pairs in the prompt, which finding the prompt has parsed.
    prompted: Option<Arc<Tokenizer>>,
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
        UnreadModel::find(directory)?.read()
    }

    /// The bundled model.
    pub fn bundled() -> Self {
        UnreadModel::bundled().read().expect("the bundled model is whole, or its test would fail")
    }

    /// Its tokenizer, for pairs in its prompt.
    ///
    /// # Errors
    /// [`TokenizerError`].
    pub fn read_tokenizer(&self) -> Result<Arc<Tokenizer>, TokenizerError> {
        match &self.prompted {
            Some(tokenizer) => Ok(tokenizer.clone()),
            None => Ok(Arc::new(Tokenizer::parse(&self.tokenizer)?)),
        }
    }
}

impl Plan {
    /// The plan of the model in a directory, with its values: the same as [`Model::open`], which also reads the
    /// tokenizer and the manifest.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn open(directory: &Path) -> Result<Self, ModelError> {
        let parts = directory::plan_files(directory)?;
        let declared = Declared::parse(parts.papers.as_deref(), directory)?;
        let plan = plan(directory, &parts, &source(directory, &parts, &declared)?)?;
        parts.weights.read(&plan).map_err(|error| weights_error(directory, &parts.weights, error))?;
        Ok(plan)
    }
}

/// What the files say about a model's plan.
fn source(directory: &Path, parts: &Parts, declared: &Declared) -> Result<Source, ModelError> {
    let modules = parts.modules.clone();
    let source = Source::new(&parts.config).map_err(|fault| unusable(directory, fault))?;
    Ok(Source { modules, label: declared.label.clone(), ..source })
}

/// The plan, whose values are in the files and not read yet.
fn plan(directory: &Path, parts: &Parts, source: &Source) -> Result<Plan, ModelError> {
    let mut plan = source.describe().map_err(|fault| unusable(directory, fault))?;
    plan.find_in(&parts.weights).map_err(|error| weights_error(directory, &parts.weights, error))?;
    Ok(plan)
}

fn weights_error(directory: &Path, weights: &Shards, error: WeightError) -> ModelError {
    if let WeightError::Changed(changed) = error {
        return changed.into();
    }
    let listed_in = weights.listed_in();
    let file =
        error.folder().map_or(listed_in.to_owned(), |folder| format!("{folder}/{}", directory::WEIGHTS));
    ModelError::Unusable { path: directory.join(file), reason: error.to_string() }
}

fn unusable(directory: &Path, Fault { file, reason }: Fault) -> ModelError {
    ModelError::Unusable { path: directory.join(&*file), reason }
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
    /// A file is not there that another file names.
    #[error("{} is missing, and {by} names it; copy or fetch it too", .path.display())]
    MissingPart {
        /// The file.
        path: PathBuf,
        /// The file that names it.
        by: &'static str,
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
    /// A file of weights was written to while the model was loaded.
    #[error(transparent)]
    Changed(#[from] FileChanged),
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
