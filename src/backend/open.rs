//! A model on the best device that this machine has.

use super::{Cpu, CpuModel, NotHere, Precision, Scorer};
use crate::base::Tier;
use crate::model::Model;

/// A scorer, and what its linear maps are computed in, `float16` for example. As in the server, a primary is on a GPU
/// where there is one that knows the model's shape and has the precision; all else is on `threads` threads of the CPU.
///
/// # Errors
/// [`NotHere`], where neither has the precision.
pub fn open(
    tier: Tier,
    model: &Model,
    precision: Precision,
    threads: usize,
) -> Result<(Box<dyn Scorer>, &'static str), NotHere> {
    #[cfg(feature = "cuda")]
    if tier == Tier::Primary
        && let Some(found) = on_gpu(model, precision)
    {
        return Ok(found);
    }
    #[cfg(not(feature = "cuda"))]
    let _ = tier;
    let packed = CpuModel::new(&model.encoder, &model.weights, precision)?;
    let dtype = packed.dtype();
    Ok((Box::new(Cpu::new(packed, threads)), dtype))
}

/// The first GPU; none, said in the log, where it cannot be used.
#[cfg(feature = "cuda")]
fn on_gpu(model: &Model, precision: Precision) -> Option<(Box<dyn Scorer>, &'static str)> {
    // Silent where no GPU has the precision.
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
