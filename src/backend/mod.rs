//! Floor 4: models on devices, behind the trait [`Scorer`].

mod cpu;
mod cuda;
mod layout;
mod lower;
mod open;
mod precision;
mod reference;
mod sample;
mod scripted;

pub use cpu::{Cpu, CpuModel, Processor, Unsupported, keeps_order_in_int8};
pub use cuda::{Cuda, GPU_BATCH_TOKENS, LoadError};
pub use lower::{check_for_gpu, has_fp8};
pub use open::open;
pub use precision::Precision;
pub use reference::Reference;
pub use sample::{SampleError, sample};
pub use scripted::{Play, Script, Scripted};

use crate::base::DeviceNs;
use crate::token::Packed;
use thiserror::Error;

/// A model on a device, owned by one lane's thread.
///
/// Most scorers run one batch at a time, by [`Scorer::score`]. A device with a queue can hold two, so that it does not idle
/// while the host packs the next: [`Scorer::submit`] queues a batch, and [`Scorer::collect`] waits for the oldest one.
pub trait Scorer: Send {
    /// Scores each sequence of `batch` into `logits` (`[sequences]`, raw logits in f32). Called only while no batch is in
    /// flight. The caller checks that the logits are finite.
    ///
    /// # Errors
    /// [`ScoreError`]; the contents of `logits` are then unspecified.
    fn score(&mut self, batch: &Packed, logits: &mut [f32]) -> Result<(), ScoreError>;

    /// Queues a batch behind those in flight and returns true. Returns false if this scorer has no queue; the caller then
    /// uses [`Scorer::score`].
    ///
    /// # Errors
    /// [`ScoreError`]; the batch is then not in flight, and earlier batches still are.
    fn submit(&mut self, _batch: &Packed) -> Result<bool, ScoreError> {
        Ok(false)
    }

    /// Whether the oldest batch in flight has ended, so that [`Scorer::collect`] returns without waiting.
    fn is_done(&self) -> bool {
        true
    }

    /// Waits for the oldest batch in flight and writes its logits. The batch is then no longer in flight, after an error
    /// too.
    ///
    /// # Errors
    /// [`ScoreError`]; the contents of `logits` are then unspecified.
    fn collect(&mut self, _logits: &mut [f32]) -> Result<(), ScoreError> {
        unreachable!("a scorer without a queue has no batch in flight")
    }

    /// The device time of the last batch that was scored or collected, if the device measures it.
    fn device_time(&self) -> Option<DeviceNs> {
        None
    }

    /// The present state of the device, if it reports one.
    fn device_state(&self) -> Option<DeviceState> {
        None
    }
}

/// The state of a device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DeviceState {
    /// Device memory that the scorer has allocated, in bytes.
    pub memory_bytes: u64,
    /// Power draw of the whole device, if it is measured: the driver's average over a second or less.
    pub watts: Option<f64>,
}

/// Why a batch was not scored.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ScoreError {
    /// The device has too little memory for this batch; a smaller one may fit.
    #[error("the device is out of memory")]
    OutOfMemory,
    /// Anything else; the lane is restarted.
    #[error("{0}")]
    Failed(String),
}
