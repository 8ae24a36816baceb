//! Whether a plan runs on a processor and in its memory, and in which precision.

use super::Processor;
use super::auto::{Choice, choose};
use super::size::peak_bytes;
use crate::backend::{Precision, lower};
use crate::model::{FileChanged, Plan};
use thiserror::Error;

/// What this engine does not run here.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Unsupported {
    /// Only some have it.
    #[error("this processor has no bf16; f32 and int8 run here")]
    Bf16,
    /// No CPU is served with it.
    #[error("{0} is for GPUs; f32, int8 and, where the processor has it, bf16 run on a CPU")]
    Gpu(&'static str),
    /// The machine has too little memory for it.
    #[error(
        "the model takes about {} of memory, and {} are available; take a smaller model or precision, free memory, or raise \
         the limit of the container or of `ulimit`",
        gigabytes(*.needed), gigabytes(*.available)
    )]
    Memory {
        /// Bytes that loading takes at its peak.
        needed: u64,
        /// Bytes that can be taken.
        available: u64,
    },
    /// The model's files were written to.
    #[error(transparent)]
    Changed(#[from] FileChanged),
    /// The model is of another kind.
    #[error("the CPU engine does not run {family}: {reason}")]
    Plan {
        /// The architecture's family.
        family: &'static str,
        /// What is unlike the models that it runs.
        reason: &'static str,
    },
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.2} GB", bytes as f64 / 1e9)
}

/// The precision that a plan runs in, if it runs on a processor within these bytes of memory.
pub(super) fn choice(
    processor: Processor,
    plan: &Plan,
    precision: Precision,
    available: Option<u64>,
) -> Result<Choice, Unsupported> {
    lower::check(plan).map_err(|reason| Unsupported::Plan { family: plan.family, reason })?;
    let choice = match precision {
        Precision::Auto | Precision::Float => choose(processor, plan),
        Precision::Bf16 if !processor.has_bf16() => return Err(Unsupported::Bf16),
        precision if precision.is_for_gpus() => return Err(Unsupported::Gpu(precision.name())),
        precision => Choice { precision, reason: "configured".to_owned(), speeds: None },
    };
    let needed = peak_bytes(plan, choice.precision, processor);
    match available.filter(|&available| available < needed) {
        Some(available) => Err(Unsupported::Memory { needed, available }),
        None => Ok(choice),
    }
}
