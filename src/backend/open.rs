//! Loads a model on the best device of this machine.

use super::{Cpu, CpuModel, Precision, Reference, Scorer, Unsupported};
use crate::base::Tier;
use crate::model::{Forward, ForwardError, Model};
use std::sync::Arc;

/// Returns a scorer and the data type of its linear maps, for example `float16`. As in the server, a primary runs on a GPU
/// that supports the model's shape and the precision; every other model runs on `threads` CPU threads, or by the reference
/// if the CPU engine does not run its plan.
///
/// # Errors
/// [`Unsupported`] if no device of this machine has the precision, or the model's files were written to.
pub fn open(
    tier: Tier,
    model: &Model,
    precision: Precision,
    threads: usize,
) -> Result<(Box<dyn Scorer>, &'static str), Unsupported> {
    #[cfg(feature = "cuda")]
    if tier == Tier::Primary
        && let Some(found) = on_gpu(model, precision)
    {
        return Ok(found);
    }
    #[cfg(not(feature = "cuda"))]
    let _ = tier;
    let packed = match CpuModel::open(model, precision, threads, None) {
        Err(error @ Unsupported::Plan { .. }) => {
            tracing::warn!(%error, "the reference engine is used, in f32 on one thread, which is many times slower");
            let forward = match Forward::new(&model.plan) {
                Err(ForwardError::Changed(changed)) => return Err(changed.into()),
                forward => forward.expect("the tensors of an opened model have their shapes"),
            };
            return Ok((Box::new(Reference::new(Arc::new(forward))), "float32"));
        }
        packed => packed?,
    };
    let dtype = packed.dtype();
    Ok((Box::new(Cpu::new(packed, threads)), dtype))
}

/// The model on the first GPU; none, with a line in the log, if that fails.
#[cfg(feature = "cuda")]
fn on_gpu(model: &Model, precision: Precision) -> Option<(Box<dyn Scorer>, &'static str)> {
    // No log line if the precision is not one of a GPU.
    precision.half()?;
    match super::Cuda::open(0, model, precision, super::GPU_BATCH_TOKENS) {
        Ok(cuda) => {
            if let Err(error) = model.plan.check_files() {
                tracing::warn!(%error, "no GPU is used");
                return None;
            }
            let dtype = cuda.dtype();
            Some((Box::new(cuda), dtype))
        }
        Err(error) => {
            tracing::info!(%error, "no GPU is used");
            None
        }
    }
}
