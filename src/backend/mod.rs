//! Floor 4: the devices behind one trait.

mod cpu;
mod cuda;
mod layout;
mod open;
mod precision;
mod reference;
mod scripted;

pub use cpu::{Cpu, CpuModel, NotHere, Processor};
pub use cuda::{Cuda, GPU_BATCH_TOKENS, LoadError, sample};
pub use open::open;
pub use precision::Precision;
pub use reference::Reference;
pub use scripted::{Play, Script, Scripted};

use crate::base::DeviceNs;
use crate::token::Packed;
use thiserror::Error;

/// A model on a device, owned by one lane's thread.
///
/// Most have one batch at a time, by [`Scorer::score`]. A device with a queue has two, so that it need not wait for the
/// host between them: [`Scorer::begin`] queues one behind the one that is at work, and [`Scorer::end`] waits for the
/// first.
pub trait Scorer: Send {
    /// Scores each sequence of `batch` into `logits` (`[sequences]`, raw logits in f32), while none is under way. A
    /// non-finite logit is the caller's to find: it trips the lane.
    ///
    /// # Errors
    /// [`ScoreError`]; `logits` then holds nothing of use.
    fn score(&mut self, batch: &Packed, logits: &mut [f32]) -> Result<(), ScoreError>;

    /// Queues a batch behind what is under way, and says that it has: false where it has no queue, so that it is to be
    /// scored.
    ///
    /// # Errors
    /// [`ScoreError`]; the batch is then not under way, and what was still is.
    fn begin(&mut self, _batch: &Packed) -> Result<bool, ScoreError> {
        Ok(false)
    }

    /// Whether the batch that was begun first has ended: [`Scorer::end`] does not wait.
    fn is_ended(&self) -> bool {
        true
    }

    /// Waits for the batch that was begun first, which is then under way no more, and gives its logits.
    ///
    /// # Errors
    /// [`ScoreError`]; `logits` then holds nothing of use.
    fn end(&mut self, _logits: &mut [f32]) -> Result<(), ScoreError> {
        unreachable!("no batch is under way where none can be begun")
    }

    /// What the device itself spent on the last batch that was scored or ended, for those that tell.
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
