//! The CPU engine: packed, fused forwards in f32, bf16 or int8, shared out over threads.
//!
//! A batch is cut into spans: whole sequences, or the prefixes that sequences of a decoder share and what follows them.
//! Threads take the next chunk of spans from one counter until none is left; each works in memory of its own, and waits in
//! each layer for the prefixes that it reads. A sequence's logit comes from the same operations in the same order wherever
//! it runs, so that it depends neither on its neighbours, nor on the threads, nor on what is shared.

mod auto;
mod choice;
mod int8_gate;
mod layer;
mod prefix;
mod processor;
mod relative;
mod size;
mod stack;

use super::{Precision, ScoreError, Scorer, lower};
use crate::model::{Model, Plan};
#[cfg(target_arch = "x86_64")]
use crate::ops::{Amx, Avx2, Avx512, Avx512Vnni, AvxVnni, TilesMissing, tiles_permission};
use crate::ops::{Bf16, Emulated, F32, Int8, Portable};
#[cfg(target_arch = "aarch64")]
use crate::ops::{Neon, NeonBf16, NeonDot};
use crate::token::Packed;
use auto::Choice;
pub use choice::Unsupported;
use choice::choice;
pub use int8_gate::keeps_order_in_int8;
use int8_gate::needs_no_test;
use prefix::{End, PART_TOKENS_MIN, Prefixes, Span};
pub use processor::Processor;
use stack::{Forward, Stack, Workspace};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A model packed for this processor; its scorers share it.
#[derive(Clone)]
pub struct CpuModel {
    forward: Arc<dyn Forward>,
    plan: Arc<Plan>,
    /// Neither `auto`, `float` nor one for GPUs.
    precision: Precision,
    processor: Processor,
    reason: Arc<str>,
}

impl CpuModel {
    /// Packs a model for the best processor that this machine is, if it takes no more than these bytes of memory. With
    /// [`Precision::Auto`] it is in int8 where that is faster and keeps the model's order; a sample of pairs is scored on
    /// `threads` threads for that, for five seconds at most, unless `podium.json` says it.
    ///
    /// # Errors
    /// [`Unsupported`], which says what.
    pub fn open(
        model: &Model,
        precision: Precision,
        threads: usize,
        available: Option<u64>,
    ) -> Result<Self, Unsupported> {
        match precision {
            Precision::Auto if lower::check(&model.plan).is_ok() => {
                int8_gate::open(model, threads, available)
            }
            precision => Self::within(&model.plan, precision, available),
        }
    }

    /// Packs weights for the best processor that this machine is. [`Precision::Auto`] is the same as [`Precision::Float`]
    /// here, as there is no tokenizer.
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

    /// Checks, before the values of a plan's tensors are read, that this engine runs it here and that packing takes no
    /// more than these bytes of memory. `keeps_order` is what `podium.json` says of int8.
    ///
    /// # Errors
    /// [`Unsupported`], which says what.
    pub fn check(
        plan: &Plan,
        precision: Precision,
        keeps_order: Option<bool>,
        available: Option<u64>,
    ) -> Result<(), Unsupported> {
        let checked = |precision| choice(Processor::here()[0], plan, precision, available).map(drop);
        match (precision, checked(precision)) {
            (Precision::Auto, Err(Unsupported::Memory { .. })) if needs_no_test(plan, keeps_order) => {
                checked(Precision::Int8)
            }
            (_, checked) => checked,
        }
    }

    fn packed(
        processor: Processor,
        plan: &Plan,
        precision: Precision,
        available: Option<u64>,
    ) -> Result<Self, Unsupported> {
        let missing = "the caller asks for what `Processor::here` lists";
        let Choice { precision, reason, .. } = choice(processor, plan, precision, available)?;
        macro_rules! stack {
            ($simd:expr, $linear:ty, $attention:ty) => {
                Arc::new(Stack::<_, $linear, $attention>::new($simd, plan))
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
            #[cfg(target_arch = "aarch64")]
            (Processor::NeonBf16 | Processor::NeonDot | Processor::Neon, Precision::F32) => {
                stack!(Neon::detect().expect(missing), F32, F32)
            }
            #[cfg(target_arch = "aarch64")]
            (Processor::NeonBf16, Precision::Int8) => stack!(NeonBf16::detect().expect(missing), Int8, Bf16),
            #[cfg(target_arch = "aarch64")]
            (Processor::NeonBf16, _) => stack!(NeonBf16::detect().expect(missing), Bf16, Bf16),
            #[cfg(target_arch = "aarch64")]
            (Processor::NeonDot, _) => stack!(NeonDot::detect().expect(missing), Int8, F32),
            #[cfg(target_arch = "aarch64")]
            (Processor::Neon, _) => stack!(Neon::detect().expect(missing), Int8, F32),
            #[cfg(not(target_arch = "aarch64"))]
            (Processor::NeonBf16 | Processor::NeonDot | Processor::Neon, _) => panic!("{missing}"),
            (Processor::Portable | Processor::Emulated, Precision::F32) => {
                stack!(Portable::default(), F32, F32)
            }
            (Processor::Portable, Precision::Int8) => stack!(Portable::default(), Int8, F32),
            (Processor::Portable, _) => stack!(Portable::default(), Bf16, Bf16),
            (Processor::Emulated, Precision::Int8) => stack!(Emulated::default(), Int8, Bf16),
            (Processor::Emulated, _) => stack!(Emulated::default(), Bf16, Bf16),
        };
        plan.check_files()?;
        Ok(Self {
            forward,
            plan: Arc::new(plan.without_values()),
            precision,
            processor,
            reason: reason.into(),
        })
    }

    /// The instruction sets that it runs on.
    pub fn processor(&self) -> Processor {
        self.processor
    }

    /// Why it is computed in [`CpuModel::dtype`].
    pub fn reason(&self) -> &Arc<str> {
        &self.reason
    }

    /// Whether pairs with the same first tokens share their keys and values.
    pub fn shares_prefixes(&self) -> bool {
        self.forward.sharing().is_some()
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
    prefixes: Prefixes,
}

impl Cpu {
    /// A scorer of a model on `threads` threads, at least one.
    pub fn new(model: CpuModel, threads: usize) -> Self {
        let workspaces = (0..threads.max(1)).map(|_| Workspace::default()).collect();
        Self { model, workspaces, prefixes: Prefixes::default() }
    }
}

impl Scorer for Cpu {
    fn score(&mut self, batch: &Packed, logits: &mut [f32]) -> Result<(), ScoreError> {
        self.model.plan.check(batch).map_err(|error| ScoreError::Failed(error.to_string()))?;
        let forward = &*self.model.forward;
        // A panic loses the prefixes, some of which may be incomplete.
        let mut prefixes = std::mem::take(&mut self.prefixes);
        // A small batch is shared out too.
        let each = |tokens: usize| tokens.div_ceil(self.workspaces.len()).min(forward.chunk_tokens());
        let sharing = forward.sharing();
        let spans = match sharing {
            Some(sharing) => prefixes.spans(batch, sharing, each(batch.ids().len()).max(PART_TOKENS_MIN)),
            None => whole(batch),
        };
        let tokens = spans.iter().map(|span| span.tokens.len());
        let chunks = chunks(tokens.clone(), each(tokens.sum()));
        let share = Share { forward, batch, spans: &spans, chunks, next: AtomicUsize::new(0) };
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
        drop(spans);
        if let Some(sharing) = sharing {
            prefixes.trim(sharing);
        }
        self.prefixes = prefixes;
        Ok(())
    }
}

/// A span for each sequence.
fn whole(batch: &Packed) -> Vec<Span> {
    let bounds = batch.starts().windows(2).enumerate();
    let span = |(number, bounds): (usize, &[u32])| Span {
        tokens: bounds[0] as usize..bounds[1] as usize,
        before: None,
        end: End::Sequence(number),
    };
    bounds.map(span).collect()
}

/// Spans with these numbers of tokens as chunks of at most `tokens_max`, or of one span that is longer.
fn chunks(spans: impl Iterator<Item = usize>, tokens_max: usize) -> Vec<Range<usize>> {
    let (mut chunks, mut filled): (Vec<Range<usize>>, usize) = (Vec::new(), 0);
    for (span, tokens) in spans.enumerate() {
        filled += tokens;
        match chunks.last_mut() {
            Some(chunk) if filled <= tokens_max => chunk.end += 1,
            _ => {
                chunks.push(span..span + 1);
                filled = tokens;
            }
        }
    }
    chunks
}

/// A batch that threads work on together.
struct Share<'a> {
    forward: &'a dyn Forward,
    batch: &'a Packed,
    spans: &'a [Span],
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
            let spans = &self.spans[chunk.clone()];
            let _given_up = GiveUp(spans);
            self.forward.chunk(self.batch, spans, workspace);
            taken.extend(spans.iter().filter_map(|span| match span.end {
                End::Sequence(number) => Some(number),
                End::Prefix(_) => None,
            }));
        }
        taken.into_iter().zip(self.forward.finish(workspace)).collect()
    }
}

/// After a panic tells threads that wait for prefixes of these spans that they will not come.
struct GiveUp<'a>(&'a [Span]);

impl Drop for GiveUp<'_> {
    fn drop(&mut self) {
        for span in self.0 {
            if let End::Prefix(prefix) = &span.end {
                prefix.give_up();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_whole_spans() {
        assert_eq!(chunks([100, 28, 1, 300, 64, 64, 1].into_iter(), 128), [0..2, 2..3, 3..4, 4..6, 6..7]);
        assert!(chunks(std::iter::empty(), 128).is_empty());
    }
}
