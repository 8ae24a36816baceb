//! Chooses the engine of a tier on this machine.

use super::tier::{EngineKind, TierConfig};
use super::{cores, memory};
use crate::backend::{Cpu, CpuModel, Precision, Reference, Unsupported, check_for_gpu};
use crate::base::Tier;
use crate::engine::MakeScorer;
use crate::model::{Forward, Model, Plan, Tensor, UnreadModel};
use std::sync::Arc;

/// The default for most tokens of a batch on a CPU, which gains nothing from larger ones.
const CPU_BATCH_TOKENS: u64 = 4_096;
/// The default depth of a lane. On a GPU one batch is queued while another runs.
const CPU_DEPTH: usize = 1;
#[cfg(feature = "cuda")]
const GPU_DEPTH: usize = 2;

/// The name of the device that stands for all CPUs of this machine. Its lanes share it.
const CPU: &str = "cpu";

/// A tier's scorers, with their data type and device.
pub(super) struct Placed {
    /// For each lane its device, and the function that makes its scorer.
    pub lanes: Vec<(Arc<str>, MakeScorer)>,
    /// The data type, for example `float16`.
    pub dtype: &'static str,
    /// The reason for that data type.
    pub dtype_reason: Arc<str>,
    /// Whether they compute once what pairs have in common before the document.
    pub shares_prefixes: bool,
    /// The kind of these devices, by which they are priced.
    pub kind: String,
    /// Most tokens of a batch.
    pub batch_tokens_max: u64,
    /// Most batches that a lane holds at once.
    pub depth: usize,
}

/// Checks, before the values of a model's tensors are read, that the CPU has the memory for it where the CPU will run it.
pub(super) fn check_memory(tier: Tier, configured: &TierConfig, found: &UnreadModel) -> Result<(), String> {
    let plan = &found.plan;
    let may_use_gpus = configured.engine == EngineKind::Cuda || may_use_gpus(tier, configured);
    let tokens_max = configured.max_tokens.unwrap_or(found.pair_tokens_max());
    if may_use_gpus && check_for_gpu(plan, tokens_max).is_ok() && gpu::is_there() {
        return Ok(());
    }
    // As `instead` does.
    let is_replaced = configured.engine == EngineKind::Cuda || configured.precision.is_for_gpus();
    let precision = if may_use_gpus && is_replaced { Precision::Float } else { configured.precision };
    let checked = match configured.engine {
        EngineKind::Reference => check_reference(plan),
        EngineKind::Auto | EngineKind::Cpu | EngineKind::Cuda => {
            match CpuModel::check(plan, precision, found.int8, memory::available()) {
                Err(Unsupported::Plan { .. }) => check_reference(plan),
                checked => checked,
            }
        }
    };
    checked.map_err(|error| error.to_string())
}

/// Whether a tier runs on GPUs where it can, and else on the CPU.
fn may_use_gpus(tier: Tier, configured: &TierConfig) -> bool {
    let has_precision = configured.precision.half().is_some();
    configured.engine == EngineKind::Auto && tier == Tier::Primary && has_precision && cfg!(feature = "cuda")
}

/// Places a model on the GPUs if it is configured for them and they can be used, else on the CPU with a line in the
/// log.
pub(super) fn place(tier: Tier, configured: &TierConfig, model: &Arc<Model>) -> Result<Placed, String> {
    match configured.engine {
        EngineKind::Cpu => on_cpu(tier, configured, model),
        EngineKind::Reference => on_reference(tier, configured, model),
        EngineKind::Auto if may_use_gpus(tier, configured) => match gpu::place(configured, model) {
            Ok(placed) => Ok(placed),
            Err(why) if configured.precision.is_for_gpus() => instead(tier, configured, model, &why),
            Err(why) => {
                tracing::info!(tier = tier.name(), why, "no GPU is used");
                on_cpu(tier, configured, model)
            }
        },
        EngineKind::Auto => on_cpu(tier, configured, model),
        EngineKind::Cuda => {
            gpu::place(configured, model).or_else(|why| instead(tier, configured, model, &why))
        }
    }
}

/// Places on the CPU, in a precision of the CPU, what was configured for a GPU.
fn instead(tier: Tier, configured: &TierConfig, model: &Model, why: &str) -> Result<Placed, String> {
    let precision = Precision::Float;
    let placed = on_cpu(tier, &TierConfig { precision, device: None, ..configured.clone() }, model)?;
    let (tier, dtype) = (tier.name(), placed.dtype);
    tracing::warn!(tier, why, dtype, "the tier runs on the CPU and is priced as `cpu`: no GPU can be used");
    Ok(placed)
}

fn on_cpu(tier: Tier, configured: &TierConfig, model: &Model) -> Result<Placed, String> {
    let (_, threads) = configured.lanes_and_threads();
    let packed = match CpuModel::open(model, configured.precision, threads, memory::available()) {
        Err(error @ Unsupported::Plan { .. }) => {
            tracing::warn!(%error, "the model runs on the reference engine, in f32 on one thread, which is many times slower");
            return on_reference(tier, configured, model);
        }
        packed => packed.map_err(|error| error.to_string())?,
    };
    let reason = format!("{}; {}", packed.processor().name(), packed.reason());
    let chosen = (packed.dtype(), reason.into());
    let shares_prefixes = packed.shares_prefixes();
    let make: MakeScorer = Arc::new(move || Ok(Box::new(Cpu::new(packed.clone(), threads))));
    Ok(Placed { shares_prefixes, ..on((tier, configured), make, chosen)? })
}

/// Checks that the reference engine has the memory for a plan.
fn check_reference(plan: &Plan) -> Result<(), Unsupported> {
    let largest = plan.tensors().into_iter().map(Tensor::count).max().unwrap_or(0);
    let needed = ((plan.parameters() + 2 * largest) * size_of::<f32>()) as u64;
    match memory::available().filter(|&available| available < needed) {
        Some(available) => Err(Unsupported::Memory { needed, available }),
        None => Ok(()),
    }
}

fn on_reference(tier: Tier, configured: &TierConfig, model: &Model) -> Result<Placed, String> {
    check_reference(&model.plan).map_err(|error| error.to_string())?;
    let forward = Arc::new(Forward::new(&model.plan).map_err(|error| error.to_string())?);
    let make: MakeScorer = Arc::new(move || Ok(Box::new(Reference::new(forward.clone()))));
    on((tier, configured), make, ("float32", "the reference engine has no other".into()))
}

fn on(
    (tier, configured): (Tier, &TierConfig),
    make: MakeScorer,
    (dtype, dtype_reason): (&'static str, Arc<str>),
) -> Result<Placed, String> {
    let (count, threads) = configured.lanes_and_threads();
    let cores = match configured.pin {
        true => Some(cores::of_lanes(tier, count, threads)?),
        false => cores::nodes_of_lanes(count, threads),
    };
    let lanes = match cores {
        None => vec![(CPU.into(), make); count],
        Some(cores) => {
            let pinned = |to: Vec<usize>| -> (Arc<str>, MakeScorer) {
                let make = make.clone();
                // This runs on the lane's thread, which starts the others.
                (CPU.into(), Arc::new(move || cores::pin(&to).and_then(|()| make())))
            };
            tracing::info!(tier = tier.name(), ?cores, "the lanes are pinned to hardware threads");
            cores.into_iter().map(pinned).collect()
        }
    };
    Ok(Placed {
        lanes,
        dtype,
        dtype_reason,
        shares_prefixes: false,
        kind: configured.device.clone().unwrap_or_else(|| "cpu".to_owned()),
        batch_tokens_max: configured.batch_tokens_max.unwrap_or(CPU_BATCH_TOKENS),
        depth: configured.depth.unwrap_or(CPU_DEPTH),
    })
}

#[cfg(feature = "cuda")]
mod gpu {
    use super::{MakeScorer, Model, Placed, Precision, TierConfig};
    use crate::backend::{Cuda, GPU_BATCH_TOKENS, Scorer};
    use crate::ops::cuda::{Half, Nvidia};
    use std::sync::{Arc, Mutex};

    /// Whether this machine has a GPU.
    pub fn is_there() -> bool {
        Nvidia::count().is_ok_and(|gpus| gpus > 0)
    }

    /// One lane on each usable GPU, or the configured number on the GPUs in turn. Returns the reason if no GPU can be
    /// used, if a configured one cannot, or if the kernels do not support the model.
    pub fn place(configured: &TierConfig, model: &Arc<Model>) -> Result<Placed, String> {
        let precision = configured.precision;
        let gpus = Nvidia::count().map_err(|error| error.to_string())?;
        let tokens_max = configured.batch_tokens_max.unwrap_or(GPU_BATCH_TOKENS);
        let load = move |model: &Model, gpu: usize| -> Result<Cuda<Nvidia>, String> {
            let loaded = Cuda::open(gpu, model, precision, tokens_max).map_err(|error| error.to_string())?;
            model.plan.check_files().map_err(|error| error.to_string())?;
            Ok(loaded)
        };
        // All models are loaded now, because there is a CPU or another GPU to fall back to only before the server
        // starts.
        let on = |lane: usize| (lane % gpus, load(model, lane % gpus));
        let mut loaded = match configured.lanes {
            Some(lanes) => (0..lanes).map(on).map(|(gpu, loaded)| Ok((gpu, loaded?))).collect(),
            None => usable((0..gpus).map(on)),
        }?;
        let dtype = loaded[0].1.dtype();
        // Lanes of a tier are replicas, so GPUs without E4M3 are left out if the first one has it.
        loaded.retain(|(gpu, other)| {
            let is_same = other.dtype() == dtype;
            if !is_same {
                tracing::warn!(
                    gpu,
                    dtype = other.dtype(),
                    "a GPU is not used: the first GPU computes in {dtype}"
                );
            }
            is_same
        });
        let name = loaded[0].1.device().name().map_err(|error| error.to_string())?;
        tracing::info!(gpus, lanes = loaded.len(), name, dtype, "GPUs are used");
        let lane = |(gpu, loaded): (usize, Cuda<Nvidia>)| -> (Arc<str>, MakeScorer) {
            let (model, loaded) = (model.clone(), Mutex::new(Some(loaded)));
            let make = move || -> Result<Box<dyn Scorer>, String> {
                let first = loaded.lock().expect("no thread panics while it holds the lock").take();
                Ok(Box::new(first.map_or_else(|| load(&model, gpu), Ok)?))
            };
            (format!("gpu {gpu}").into(), Arc::new(make))
        };
        let lanes = loaded.into_iter().map(lane).collect();
        let kind = configured.device.clone().unwrap_or_else(|| "gpu".to_owned());
        let depth = configured.depth.unwrap_or(super::GPU_DEPTH);
        let dtype_reason = match precision {
            Precision::Auto | Precision::Float if dtype == Half::Bf16.dtype() => {
                "a score was not finite in float16"
            }
            Precision::Auto | Precision::Float => "what it is on a GPU",
            Precision::Fp8 => {
                "configured; float16 where fp8 failed on the sample, or the GPU or the model has none"
            }
            _ => "configured",
        };
        let dtype_reason = dtype_reason.into();
        let (shares_prefixes, batch_tokens_max) = (false, tokens_max);
        Ok(Placed { lanes, dtype, dtype_reason, shares_prefixes, kind, batch_tokens_max, depth })
    }

    /// The values that were loaded, with their GPUs. Failures are logged; the first is returned as an error if nothing
    /// was loaded.
    fn usable<T>(all: impl Iterator<Item = (usize, Result<T, String>)>) -> Result<Vec<(usize, T)>, String> {
        let (mut loaded, mut left_out) = (Vec::new(), Vec::new());
        for (gpu, result) in all {
            match result {
                Ok(one) => loaded.push((gpu, one)),
                Err(why) => left_out.push((gpu, why)),
            }
        }
        if loaded.is_empty() {
            return Err(left_out.swap_remove(0).1);
        }
        for (gpu, why) in left_out {
            tracing::warn!(gpu, why, "a GPU is not used");
        }
        Ok(loaded)
    }

    #[cfg(test)]
    mod tests {
        use super::usable;

        #[test]
        fn a_gpu_that_cannot_be_used_costs_no_other() {
            let all = |full: &[usize]| {
                let full = full.to_vec();
                let load =
                    move |gpu| if full.contains(&gpu) { Err(format!("{gpu} is full")) } else { Ok('x') };
                usable((0..3).map(|gpu| (gpu, load(gpu))))
            };
            assert_eq!(all(&[]), Ok(vec![(0, 'x'), (1, 'x'), (2, 'x')]));
            assert_eq!(all(&[0, 2]), Ok(vec![(1, 'x')]));
            assert_eq!(all(&[0, 1, 2]), Err("0 is full".to_owned()));
        }
    }
}

#[cfg(not(feature = "cuda"))]
mod gpu {
    use super::{Model, Placed, TierConfig};
    use std::sync::Arc;

    pub fn is_there() -> bool {
        false
    }

    pub fn place(_configured: &TierConfig, _model: &Arc<Model>) -> Result<Placed, String> {
        Err("this program was built without the feature cuda".to_owned())
    }
}
