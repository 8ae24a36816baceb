//! The CPU engine: packed, fused forwards in f32, bf16 or int8, shared out over threads.
//!
//! A batch is cut into chunks of whole sequences. Threads take the next chunk from one counter until
//! none is left; each works in memory of its own. A sequence's logit comes from the same operations in
//! the same order wherever it runs, so that it depends neither on its neighbours nor on the threads.

mod auto;
mod layer;
mod size;
mod stack;

use super::lower::check;
use super::{Precision, ScoreError, Scorer};
use crate::model::Plan;
#[cfg(target_arch = "x86_64")]
use crate::ops::{Amx, Avx2, Avx512, Avx512Vnni, AvxVnni, TilesMissing, tiles_permission};
use crate::ops::{Bf16, Emulated, F32, Int8, Portable};
use crate::token::Packed;
use auto::{Choice, choose};
use stack::{Forward, Stack, Workspace};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use thiserror::Error;

/// An instruction set that the operations are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processor {
    /// AVX-512 with VNNI, BF16, and AMX tiles that this process may use.
    Amx,
    /// AVX-512 with VNNI and BF16.
    Avx512,
    /// AVX-512 with VNNI.
    Avx512Vnni,
    /// AVX2 with FMA and AVX-VNNI.
    AvxVnni,
    /// AVX2 with FMA.
    Avx2,
    /// Any.
    Portable,
    /// Any, with tiles as AMX has them in plain Rust: slow, for tests.
    Emulated,
}

impl Processor {
    /// Those that this machine is, best first.
    pub fn here() -> Vec<Self> {
        let mut here = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            here.extend(Amx::detect().map(|_| Self::Amx));
            here.extend(Avx512::detect().map(|_| Self::Avx512));
            here.extend(Avx512Vnni::detect().map(|_| Self::Avx512Vnni));
            here.extend(AvxVnni::detect().map(|_| Self::AvxVnni));
            here.extend(Avx2::detect().map(|_| Self::Avx2));
        }
        here.extend([Self::Portable, Self::Emulated]);
        here
    }

    /// What of it matters, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Amx => "AMX",
            Self::Avx512 => "AVX-512 with bf16",
            Self::Avx512Vnni => "AVX-512",
            Self::AvxVnni => "AVX2 with VNNI",
            Self::Avx2 => "AVX2",
            Self::Portable => "any",
            Self::Emulated => "emulated tiles",
        }
    }

    /// Whether there is bf16.
    pub fn has_bf16(self) -> bool {
        match self {
            Self::Amx | Self::Avx512 | Self::Portable | Self::Emulated => true,
            Self::Avx512Vnni | Self::AvxVnni | Self::Avx2 => false,
        }
    }
}

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
        "the model takes about {} of memory, and {} are available; take a smaller model or precision, or free memory",
        gigabytes(*.needed), gigabytes(*.available)
    )]
    Memory {
        /// Bytes that loading takes at its peak.
        needed: u64,
        /// Bytes that can be taken.
        available: u64,
    },
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

/// A model packed for this processor; its scorers share it.
#[derive(Clone)]
pub struct CpuModel {
    forward: Arc<dyn Forward>,
    plan: Arc<Plan>,
    /// Neither [`Precision::Auto`] nor one for GPUs.
    precision: Precision,
    processor: Processor,
    reason: Arc<str>,
}

impl CpuModel {
    /// Packs weights for the best processor that this machine is.
    ///
    /// # Errors
    /// [`Unsupported`], which says what.
    pub fn new(plan: &Plan, precision: Precision) -> Result<Self, Unsupported> {
        Self::within(plan, precision, None)
    }

    /// The same, if it takes no more than these bytes of memory. That is checked before anything is packed.
    ///
    /// # Errors
    /// [`Unsupported`], which says what.
    pub fn within(plan: &Plan, precision: Precision, available: Option<u64>) -> Result<Self, Unsupported> {
        #[cfg(target_arch = "x86_64")]
        if let Err(TilesMissing::Denied(errno)) = tiles_permission() {
            static SAID: std::sync::Once = std::sync::Once::new();
            SAID.call_once(|| {
                tracing::warn!(
                    errno,
                    "the processor has AMX, and arch_prctl(ARCH_REQ_XCOMP_PERM) is denied: AVX-512 is used, which is slower"
                );
            });
        }
        Self::packed(Processor::here()[0], plan, precision, available)
    }

    /// Packs weights for one of the processors that this machine is.
    ///
    /// # Errors
    /// [`Unsupported`], which says what.
    ///
    /// # Panics
    /// Where the machine is no such processor.
    pub fn on(processor: Processor, plan: &Plan, precision: Precision) -> Result<Self, Unsupported> {
        Self::packed(processor, plan, precision, None)
    }

    fn packed(
        processor: Processor,
        plan: &Plan,
        precision: Precision,
        available: Option<u64>,
    ) -> Result<Self, Unsupported> {
        check(plan).map_err(|reason| Unsupported::Plan { family: plan.family, reason })?;
        let missing = "the caller asks for what `Processor::here` lists";
        let Choice { precision, reason } = match precision {
            Precision::Auto => choose(processor, plan),
            Precision::Bf16 if !processor.has_bf16() => return Err(Unsupported::Bf16),
            precision if precision.is_for_gpus() => return Err(Unsupported::Gpu(precision.name())),
            precision => Choice { precision, reason: "configured".into() },
        };
        macro_rules! stack {
            ($simd:expr, $linear:ty, $attention:ty) => {
                Stack::<_, $linear, $attention>::within($simd, plan, available)?
            };
        }
        // In f32 a processor's levels are the same program.
        let forward: Arc<dyn Forward> = match (processor, precision) {
            #[cfg(target_arch = "x86_64")]
            (Processor::Amx | Processor::Avx512 | Processor::Avx512Vnni, Precision::F32) => {
                stack!(Avx512Vnni::detect().expect(missing), F32, F32)
            }
            #[cfg(target_arch = "x86_64")]
            (Processor::Amx, Precision::Int8) => stack!(Amx::detect().expect(missing), Int8, Bf16),
            #[cfg(target_arch = "x86_64")]
            (Processor::Amx, _) => stack!(Amx::detect().expect(missing), Bf16, Bf16),
            #[cfg(target_arch = "x86_64")]
            (Processor::Avx512, Precision::Int8) => stack!(Avx512::detect().expect(missing), Int8, Bf16),
            #[cfg(target_arch = "x86_64")]
            (Processor::Avx512, _) => stack!(Avx512::detect().expect(missing), Bf16, Bf16),
            #[cfg(target_arch = "x86_64")]
            (Processor::Avx512Vnni, _) => stack!(Avx512Vnni::detect().expect(missing), Int8, F32),
            #[cfg(target_arch = "x86_64")]
            (Processor::AvxVnni | Processor::Avx2, Precision::F32) => {
                stack!(Avx2::detect().expect(missing), F32, F32)
            }
            #[cfg(target_arch = "x86_64")]
            (Processor::AvxVnni, _) => stack!(AvxVnni::detect().expect(missing), Int8, F32),
            #[cfg(target_arch = "x86_64")]
            (Processor::Avx2, _) => stack!(Avx2::detect().expect(missing), Int8, F32),
            #[cfg(not(target_arch = "x86_64"))]
            (
                Processor::Amx
                | Processor::Avx512
                | Processor::Avx512Vnni
                | Processor::AvxVnni
                | Processor::Avx2,
                _,
            ) => panic!("{missing}"),
            (Processor::Portable | Processor::Emulated, Precision::F32) => {
                stack!(Portable::default(), F32, F32)
            }
            (Processor::Portable, Precision::Int8) => stack!(Portable::default(), Int8, F32),
            (Processor::Portable, _) => stack!(Portable::default(), Bf16, Bf16),
            (Processor::Emulated, Precision::Int8) => stack!(Emulated::default(), Int8, Bf16),
            (Processor::Emulated, _) => stack!(Emulated::default(), Bf16, Bf16),
        };
        Ok(Self { forward, plan: Arc::new(plan.without_values()), precision, processor, reason })
    }

    /// The instruction sets that it runs on.
    pub fn processor(&self) -> Processor {
        self.processor
    }

    /// Why it is computed in [`CpuModel::dtype`].
    pub fn reason(&self) -> &Arc<str> {
        &self.reason
    }

    /// What its linear maps are computed in: `float32`, `bfloat16` or `int8`.
    pub fn dtype(&self) -> &'static str {
        match self.precision {
            Precision::Bf16 => "bfloat16",
            Precision::Int8 => "int8",
            _ => "float32",
        }
    }
}

/// Runs a model on this many threads, of which the caller's is one.
pub struct Cpu {
    model: CpuModel,
    workspaces: Vec<Workspace>,
}

impl Cpu {
    /// A scorer of a model on `threads` threads, at least one.
    pub fn new(model: CpuModel, threads: usize) -> Self {
        Self { model, workspaces: (0..threads.max(1)).map(|_| Workspace::default()).collect() }
    }
}

impl Scorer for Cpu {
    fn score(&mut self, batch: &Packed, logits: &mut [f32]) -> Result<(), ScoreError> {
        self.model.plan.check(batch).map_err(|error| ScoreError::Failed(error.to_string()))?;
        let forward = &*self.model.forward;
        // A small batch is shared out too.
        let each = batch.tokens().0.div_ceil(self.workspaces.len() as u64);
        let chunk_tokens = each.min(forward.chunk_tokens().into()) as u32;
        let share = Share { forward, batch, chunks: chunks(batch, chunk_tokens), next: AtomicUsize::new(0) };
        let helpers = share.chunks.len().min(self.workspaces.len()).saturating_sub(1);
        let (own, others) = self.workspaces.split_first_mut().expect("a scorer has a thread");
        let scored = std::thread::scope(|scope| {
            let helping =
                others.iter_mut().take(helpers).map(|workspace| scope.spawn(|| share.work(workspace)));
            let helping: Vec<_> = helping.collect();
            let mut scored = share.work(own);
            for helper in helping {
                // A panic is the lane's to catch, wherever it happened.
                scored.extend(helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
            scored
        });
        for (sequence, logit) in scored {
            logits[sequence] = logit;
        }
        Ok(())
    }
}

/// Whole sequences up to a number of tokens, or one sequence that is longer.
fn chunks(batch: &Packed, tokens_max: u32) -> Vec<Range<usize>> {
    let starts = batch.starts();
    let mut chunks: Vec<Range<usize>> = Vec::new();
    for sequence in 0..batch.len() {
        match chunks.last_mut() {
            Some(chunk) if starts[sequence + 1] - starts[chunk.start] <= tokens_max => chunk.end += 1,
            _ => chunks.push(sequence..sequence + 1),
        }
    }
    chunks
}

/// A batch that threads work on together.
struct Share<'a> {
    forward: &'a dyn Forward,
    batch: &'a Packed,
    chunks: Vec<Range<usize>>,
    /// The next chunk that no thread has taken.
    next: AtomicUsize,
}

impl Share<'_> {
    /// Takes chunks until none is left; sequences with their logits.
    fn work(&self, workspace: &mut Workspace) -> Vec<(usize, f32)> {
        workspace.forget();
        let mut taken = Vec::new();
        while let Some(chunk) = self.chunks.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            self.forward.chunk(self.batch, chunk.clone(), workspace);
            taken.extend(chunk.clone());
        }
        taken.into_iter().zip(self.forward.finish(workspace)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_whole_sequences() {
        let mut batch = Packed::default();
        for length in [100, 28, 1, 300, 64, 64, 1] {
            batch.push((0..length).map(|_| (1, 0)));
        }
        assert_eq!(chunks(&batch, 128), [0..2, 2..3, 3..4, 4..6, 6..7]);
        assert!(chunks(&Packed::default(), 128).is_empty());
    }
}
