//! Which engine runs a tier on this machine.

use super::config::{EngineKind, TierConfig};
use crate::backend::{Cpu, CpuModel, Precision, Reference};
use crate::base::Tier;
use crate::engine::MakeScorer;
use crate::model::{Forward, Model};
use std::sync::Arc;

/// Tokens of a batch, where the configuration names none: a CPU gains nothing from more.
const CPU_BATCH_TOKENS: u64 = 4_096;
/// Batches that a lane holds, where the configuration does not say: on a GPU the next one is queued while one is at work.
const CPU_DEPTH: usize = 1;
#[cfg(feature = "cuda")]
const GPU_DEPTH: usize = 2;

/// A tier's scorers: what they compute in, and where.
pub(super) struct Placed {
    /// What makes a lane's scorer, for each lane.
    pub makes: Vec<MakeScorer>,
    /// `float16`, for example.
    pub dtype: &'static str,
    /// What prices call the device.
    pub device: String,
    /// Most tokens of a batch.
    pub batch_tokens_max: u64,
    /// Batches that a lane may hold at once.
    pub depth: usize,
}

/// Places a model: on the GPUs where it is to and can be, else on the CPU, with a line in the log.
pub(super) fn place(tier: Tier, configured: &TierConfig, model: &Arc<Model>) -> Result<Placed, String> {
    match configured.engine {
        EngineKind::Cpu => on_cpu(configured, model),
        EngineKind::Reference => {
            let forward = Forward::new(&model.encoder, &model.weights).map_err(|error| error.to_string())?;
            let forward = Arc::new(forward);
            let make: MakeScorer = Arc::new(move || Ok(Box::new(Reference::new(forward.clone()))));
            Ok(on(configured, &make, "float32"))
        }
        EngineKind::Auto => {
            let half =
                configured.precision.half().filter(|_| tier == Tier::Primary && cfg!(feature = "cuda"));
            match half.map(|_| gpu::place(configured, model)) {
                Some(Ok(placed)) => Ok(placed),
                Some(Err(why)) => {
                    tracing::info!(tier = tier.name(), why, "no GPU is used");
                    on_cpu(configured, model)
                }
                None => on_cpu(configured, model),
            }
        }
        EngineKind::Cuda => gpu::place(configured, model).or_else(|why| {
            tracing::warn!(
                tier = tier.name(),
                why,
                "no GPU can be used: the tier runs on the CPU, priced as `cpu`"
            );
            let precision = Precision::Auto;
            on_cpu(&TierConfig { precision, device: None, ..configured.clone() }, model)
        }),
    }
}

fn on_cpu(configured: &TierConfig, model: &Model) -> Result<Placed, String> {
    let packed = CpuModel::new(&model.encoder, &model.weights, configured.precision);
    let (packed, threads) = (packed.map_err(|error| error.to_string())?, configured.threads);
    let dtype = packed.dtype();
    let make: MakeScorer = Arc::new(move || Ok(Box::new(Cpu::new(packed.clone(), threads))));
    Ok(on(configured, &make, dtype))
}

fn on(configured: &TierConfig, make: &MakeScorer, dtype: &'static str) -> Placed {
    Placed {
        makes: vec![make.clone(); configured.lanes.unwrap_or(1)],
        dtype,
        device: configured.device.clone().unwrap_or_else(|| "cpu".to_owned()),
        batch_tokens_max: configured.batch_tokens_max.unwrap_or(CPU_BATCH_TOKENS),
        depth: configured.depth.unwrap_or(CPU_DEPTH),
    }
}

#[cfg(feature = "cuda")]
mod gpu {
    use super::{MakeScorer, Model, Placed, TierConfig};
    use crate::backend::{Cuda, GPU_BATCH_TOKENS};
    use crate::ops::cuda::Nvidia;
    use std::sync::{Arc, Mutex};

    /// Lanes, each on a GPU in turn, one a GPU where the configuration does not say; why not, where one cannot be used or does not know the model's shape.
    pub fn place(configured: &TierConfig, model: &Arc<Model>) -> Result<Placed, String> {
        let precision = configured.precision;
        let gpus = Nvidia::count().map_err(|error| error.to_string())?;
        let tokens_max = configured.batch_tokens_max.unwrap_or(GPU_BATCH_TOKENS);
        let load = move |model: &Model, lane: usize| -> Result<Cuda<Nvidia>, String> {
            Cuda::open(lane % gpus, model, precision, tokens_max).map_err(|error| error.to_string())
        };
        // All are loaded now: whatever cannot be is known while there is a CPU to go to.
        let mut dtype = "";
        let make = |lane: usize| -> Result<MakeScorer, String> {
            let (model, loaded) = (model.clone(), load(model, lane)?);
            if lane == 0 {
                dtype = loaded.dtype();
                let name = loaded.device().name().map_err(|error| error.to_string())?;
                tracing::info!(gpus, name, dtype, "GPUs are used");
            }
            let loaded = Mutex::new(Some(loaded));
            Ok(Arc::new(move || {
                let first = loaded.lock().expect("nobody panics with the lock").take();
                Ok(Box::new(first.map_or_else(|| load(&model, lane), Ok)?))
            }))
        };
        let makes = (0..configured.lanes.unwrap_or(gpus)).map(make).collect::<Result<_, _>>()?;
        let device = configured.device.clone().unwrap_or_else(|| "gpu".to_owned());
        let depth = configured.depth.unwrap_or(super::GPU_DEPTH);
        Ok(Placed { makes, dtype, device, batch_tokens_max: tokens_max, depth })
    }
}

#[cfg(not(feature = "cuda"))]
mod gpu {
    use super::{Model, Placed, TierConfig};
    use std::sync::Arc;

    pub fn place(_configured: &TierConfig, _model: &Arc<Model>) -> Result<Placed, String> {
        Err("this program was built without the feature cuda".to_owned())
    }
}
