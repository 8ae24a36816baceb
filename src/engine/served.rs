//! A version of a model that serves, and the models that may answer a request.

use super::ModelSetup;
use super::prepare::Reader;
use super::router::is_named;
use crate::base::{ModelId, ModelRef, Tier};
use crossbeam_channel::{Receiver, Sender, bounded};
use smallvec::SmallVec;
use std::sync::Arc;

/// A version of a model whose lanes are up. Each request holds those that may answer it until it has its answer.
pub(super) struct Served {
    pub id: ModelId,
    /// Its set-up, without its lanes.
    pub setup: ModelSetup,
    pub reader: Reader,
    pub info: ModelInfo,
    /// Closes when nobody holds the version any more.
    pub ended: Receiver<()>,
    _holds: Sender<()>,
}

impl Served {
    pub fn new(id: ModelId, setup: ModelSetup, reader: Reader, info: ModelInfo) -> Self {
        let (_holds, ended) = bounded(0);
        Self { id, setup, reader, info, ended, _holds }
    }

    /// Its name and version.
    pub fn named(&self) -> ModelRef {
        ModelRef { name: self.setup.name.to_string(), version: Some(self.setup.version.to_string()) }
    }

    /// Whether a name, with or without a version, means it.
    pub fn is(&self, named: &ModelRef) -> bool {
        is_named(named, &self.setup.name, &self.setup.version)
    }
}

/// A model that is served.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// Its name.
    pub name: Arc<str>,
    /// Its version: the first 12 hex digits of its weights' sha256.
    pub version: Arc<str>,
    /// Primary or fallback.
    pub tier: Tier,
    /// The data type of its linear maps: `float32`, `bfloat16` or `int8` on a CPU; `float16`, `bfloat16` or
    /// `float8_e4m3` on a GPU.
    pub dtype: &'static str,
    /// The reason for that data type.
    pub dtype_reason: Arc<str>,
    /// Most tokens of a pair.
    pub pair_tokens_max: u32,
    /// Whether its prompt has a place for a request's instruction.
    pub takes_instruction: bool,
    /// Its licence.
    pub licence: Arc<str>,
    /// When it came up, in seconds since 1970.
    pub created_unix: u64,
}

impl ModelInfo {
    /// Of a model that came up at `created_unix`.
    pub(super) fn new(model: &ModelSetup, created_unix: u64) -> Self {
        Self {
            name: model.name.clone(),
            version: model.version.clone(),
            tier: model.tier,
            dtype: model.dtype,
            dtype_reason: model.dtype_reason.clone(),
            pair_tokens_max: model.pair_tokens_max,
            takes_instruction: model.tokenizer.takes_instruction(),
            licence: model.licence.clone(),
            created_unix,
        }
    }
}

/// The models that may answer a request.
#[derive(Clone, Default)]
pub(super) struct Candidates {
    /// The preferred one first.
    pub primaries: SmallVec<[Arc<Served>; 1]>,
    /// None of the primaries.
    pub fallback: Option<Arc<Served>>,
}
