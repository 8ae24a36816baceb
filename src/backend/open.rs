//! Loads a model on the best device of this machine.

use super::{Cpu, CpuModel, Precision, Scorer, Unsupported};
use crate::base::Tier;
use crate::model::Model;

/// Returns a scorer and the data type of its linear maps, for example `float16`. As in the server, a primary runs on a GPU
/// that supports the model's shape and the precision; every other model runs on `threads` CPU threads.
///
/// # Errors
/// [`Unsupported`] if no device of this machine has the precision.
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
    let packed = CpuModel::new(&model.plan, precision)?;
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
            let dtype = cuda.dtype();
            Some((Box::new(cuda), dtype))
        }
        Err(error) => {
            tracing::info!(%error, "no GPU is used");
            None
        }
    }
}
