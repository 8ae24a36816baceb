//! Floor 4: the devices behind one trait.

mod cpu;
mod cuda;
mod kept;
mod layout;
mod open;
mod precision;
mod reference;
mod scripted;

pub use cpu::{Cpu, CpuModel, NotHere, Processor};
pub use cuda::{Cuda, GPU_BATCH_TOKENS, LoadError, sample};
pub use kept::{CacheError, Keeper, KeeperError, List, PairReader};
pub use open::open;
pub use precision::Precision;
pub use reference::Reference;
pub use scripted::{Play, Script, Scripted};

use crate::base::DeviceNs;
use crate::token::Packed;
use thiserror::Error;

/// A model on a device, owned by one lane's thread.
pub trait Scorer: Send {
    /// Scores each sequence of `batch` into `logits` (`[sequences]`, raw logits in f32). A
    /// non-finite logit is the caller's to find: it trips the lane.
    ///
    /// # Errors
    /// [`ScoreError`]; `logits` then holds nothing of use.
    fn score(&mut self, batch: &Packed, logits: &mut [f32]) -> Result<(), ScoreError>;

    /// What the device itself spent on the last batch that was scored, for those that tell.
    fn device_time(&self) -> Option<DeviceNs> {
        None
    }

    /// How the device is now, for those that tell.
    fn device_state(&self) -> Option<DeviceState> {
        None
    }
}

/// What a device tells of itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DeviceState {
    /// Its memory that the scorer has taken, bytes.
    pub memory_bytes: u64,
    /// What it draws, where it tells: its driver's average over a second or less.
    pub watts: Option<f64>,
}

/// Why a batch has no scores.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ScoreError {
    /// The device has no room for a batch of this size; a smaller one may pass.
    #[error("the device is out of memory")]
    OutOfMemory,
    /// Anything else; the lane is restarted.
    #[error("{0}")]
    Failed(String),
}
