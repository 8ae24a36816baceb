//! The CUDA engine: packed, fused forwards in f16 or bf16, or with linear maps in E4M3 (`fp8`). Each bucket of batch sizes
//! is recorded once as a CUDA graph.
//!
//! A batch takes one copy to the device, the launches of its bucket, and one copy of its logits back. While one batch is
//! running the next is queued behind it. All memory is allocated when the engine starts.

mod arena;
mod buckets;
mod fp8;
mod load;
mod stack;

use super::lower::check_for_gpu;
#[cfg(feature = "cuda")]
use super::lower::has_fp8;
use super::{DeviceState, ScoreError, Scorer};
#[cfg(feature = "cuda")]
use super::{
    Precision,
    sample::{Agreement, SampleError, sample},
};
use crate::base::DeviceNs;
use crate::model::Plan;
#[cfg(feature = "cuda")]
use crate::model::{Model, Norms};
#[cfg(feature = "cuda")]
use crate::ops::cuda::Nvidia;
use crate::ops::cuda::{Array, Bucket, Device, DeviceError, Half, Launcher, Vocabulary, fill_words};
use crate::token::Packed;
use arena::Arena;
use buckets::{buckets, fits, runs};
use stack::{InputMaxima, Stack};
use std::collections::VecDeque;
use std::ops::Range;
use thiserror::Error;

/// Runs that may be in flight: two batches, of which those with the shortest pairs are split into up to four runs each.
const RUNS_MAX: usize = 8;

/// The default for most tokens of a batch: enough to fill a GPU.
pub const GPU_BATCH_TOKENS: u64 = 16_384;

/// A model on a device, with its own stream.
pub struct Cuda<D: Device> {
    /// Runs in flight, the oldest first, with the number of sequences of each. The first field, because its drop waits for
    /// the device, which must happen before the memory below is freed.
    runs_in_flight: VecDeque<(D::Submission, usize)>,
    device: D,
    half: Half,
    /// Without its tensors' values.
    plan: Plan,
    stack: Stack<D>,
    arena: Arena<D>,
    batch: Array<D>,
    buckets: Vec<Bucket>,
    /// Host buffers that are not in flight.
    free: Vec<D::Submission>,
    /// Batches that were submitted and not collected, the oldest first.
    in_flight: VecDeque<InFlight>,
    /// Device time of the last batch that was collected.
    spent: Option<DeviceNs>,
}

/// A batch that was submitted and not collected.
struct InFlight {
    logits: Vec<f32>,
    /// Logits that have been copied back.
    collected: usize,
    /// Runs that have not been collected.
    runs: usize,
    /// Device time of the collected runs, or the first error among them.
    spent: Result<Option<DeviceNs>, DeviceError>,
}

/// Why a model cannot be loaded on a device.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The kernels do not support its shape, or its tokenizer cannot be used.
    #[error("{0}")]
    Shape(String),
    /// A score is NaN or infinite in this half type.
    #[error("a score is {0} in {1}; bf16 and f32 have a larger range than f16")]
    NonFinite(f32, &'static str),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

#[cfg(feature = "cuda")]
impl Cuda<Nvidia> {
    /// Loads a model on a GPU and runs every bucket once. Batches have at most `tokens_max` tokens. [`Precision::Auto`] and
    /// `Float` are bf16 if f16 has too small a range, [`Precision::Fp8`] is f16 if fp8 fails or orders a sample otherwise. The
    /// log says so.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn open(
        ordinal: usize,
        model: &Model,
        precision: Precision,
        tokens_max: u64,
    ) -> Result<Self, LoadError> {
        let half = precision.half().ok_or_else(|| {
            LoadError::Shape(format!("a GPU computes in f16, bf16 or fp8, not in {}", precision.name()))
        })?;
        // Pairs may be shorter than what the model reads, and need less memory then.
        let plan = &Plan { tokens_max: model.pair_tokens_max, ..model.plan.clone() };
        if matches!(precision, Precision::Auto | Precision::Float) {
            // States that layers do not norm may grow beyond f16. Without a sample warming up alone decides.
            let may_grow = plan.blocks.iter().any(|block| block.norms == Norms::Pre);
            let lists = if may_grow { sample(model).unwrap_or_default() } else { Vec::new() };
            return Self::auto(|| Nvidia::open(ordinal), plan, lists.first(), tokens_max);
        }
        let mut halves = Self::new(Nvidia::open(ordinal)?, plan, half, tokens_max)?.warmed()?;
        if precision != Precision::Fp8 {
            return Ok(halves);
        }
        if !has_fp8(plan) {
            tracing::warn!("f16 is used: {} has layers that the GPU engine does not run in fp8", plan.family);
            return Ok(halves);
        }
        let needed = Agreement::MIN;
        let unread = |error: SampleError| LoadError::Shape(error.to_string());
        let mut to_fp8 =
            || halves.to_fp8(Nvidia::open(ordinal)?, plan, &sample(model).map_err(unread)?, tokens_max);
        match to_fp8() {
            Ok((fp8, agreement)) if agreement >= needed => {
                tracing::info!(agreement, needed, "fp8 is used: it orders the sample as f16 does");
                Ok(fp8)
            }
            Ok((_, agreement)) => {
                tracing::warn!(agreement, needed, "f16 is used: fp8 orders the sample differently");
                Ok(halves)
            }
            // For example a GPU before sm_89, or too little memory for both models.
            Err(error) => {
                tracing::warn!(%error, "f16 is used: fp8 failed");
                Ok(halves)
            }
        }
    }
}

impl<D: Device> Cuda<D> {
    /// Loads a model on a device, with memory for batches of `tokens_max` tokens; larger batches are split.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn new(device: D, plan: &Plan, half: Half, tokens_max: u64) -> Result<Self, LoadError> {
        Self::load(device, plan, (half, None), tokens_max)
    }

    /// Loads a model in f16 and runs every bucket once; in bf16, with a warning, if a score of those or of `list` is not
    /// finite in f16.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn auto(
        open: impl Fn() -> Result<D, DeviceError>,
        plan: &Plan,
        list: Option<&Packed>,
        tokens_max: u64,
    ) -> Result<Self, LoadError> {
        let mut in_f16 = Self::new(open()?, plan, Half::F16, tokens_max)?.warmed();
        if let (Ok(engine), Some(list)) = (&mut in_f16, list)
            && let Err(error) = engine.check_finite(list)
        {
            in_f16 = Err(error);
        }
        match in_f16 {
            Err(error @ LoadError::NonFinite(..)) => {
                tracing::warn!(%error, "bf16 is used");
                Self::new(open()?, plan, Half::Bf16, tokens_max)?.warmed()
            }
            loaded => loaded,
        }
    }

    /// As [`Cuda::new`]; with maps in E4M3 if the input maxima of all layers but the last are given.
    fn load(
        device: D,
        plan: &Plan,
        (half, maxima): (Half, Option<&[InputMaxima]>),
        tokens_max: u64,
    ) -> Result<Self, LoadError> {
        check_for_gpu(plan, plan.tokens_max).map_err(|reason| {
            LoadError::Shape(format!("the GPU engine does not run {}: {reason}", plan.family))
        })?;
        let longest = plan.tokens_max;
        let buckets = buckets(u32::try_from(tokens_max).unwrap_or(u32::MAX).max(longest));
        let bucket = *buckets.last().expect("there is a bucket");
        let stack = Stack::load(&device, plan, half, maxima)?;
        let arena = stack.arena(&device, bucket)?;
        let batch = Array::new(&device, 4 * bucket.words())?;
        let submission = |_| device.submission(bucket.words(), 4 * bucket.sequences as usize);
        let free = (0..RUNS_MAX).map(submission).collect::<Result<_, _>>()?;
        Ok(Self {
            runs_in_flight: VecDeque::new(),
            device,
            half,
            plan: plan.without_values(),
            stack,
            arena,
            batch,
            buckets,
            free,
            in_flight: VecDeque::new(),
            spent: None,
        })
    }

    /// Runs a batch of every bucket, so that all plans are made, all graphs recorded and all memory needs met before
    /// requests arrive.
    ///
    /// # Errors
    /// [`LoadError`], also if a score is not finite.
    pub fn warmed(mut self) -> Result<Self, LoadError> {
        for bucket in self.buckets.clone() {
            let length = bucket.tokens.min(self.plan.tokens_max) as usize;
            let mut batch = Packed::default();
            let tokens = bucket.tokens as usize;
            for start in (0..tokens).step_by(length) {
                batch.push((start..tokens.min(start + length)).map(|_| (0, 0)));
            }
            self.check_finite(&batch)?;
        }
        Ok(self)
    }

    /// Scores a batch.
    ///
    /// # Errors
    /// [`LoadError`] if a score is not finite.
    fn check_finite(&mut self, batch: &Packed) -> Result<(), LoadError> {
        let mut logits = vec![0.0; batch.len()];
        self.run_all(batch, &mut logits)?;
        match logits.iter().find(|logit| !logit.is_finite()) {
            Some(logit) => Err(LoadError::NonFinite(*logit, self.half.name())),
            None => Ok(()),
        }
    }

    /// The data type of its linear maps, for example `float16`.
    pub fn dtype(&self) -> &'static str {
        if self.stack.is_fp8() { "float8_e4m3" } else { self.half.dtype() }
    }

    /// The device that it runs on.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// Scores a batch and waits for it.
    fn run_all(&mut self, batch: &Packed, logits: &mut [f32]) -> Result<(), DeviceError> {
        self.submit_batch(batch, None)?;
        self.collect_batch(logits)
    }

    /// Queues a batch; after an error nothing of it is queued. Raises `maxima`, if given, to the batch's input maxima.
    fn submit_batch(
        &mut self,
        batch: &Packed,
        mut maxima: Option<&mut [InputMaxima]>,
    ) -> Result<(), DeviceError> {
        let runs = runs(batch, *self.buckets.last().expect("there is a bucket"));
        let logits = vec![0.0; batch.len()];
        self.in_flight.push_back(InFlight { logits, collected: 0, runs: runs.len(), spent: Ok(None) });
        let queued = runs.into_iter().try_for_each(|run| self.submit_run(batch, run, maxima.as_deref_mut()));
        if queued.is_err() {
            while !self.runs_in_flight.is_empty() {
                self.collect_run();
            }
            self.in_flight.pop_back();
        }
        queued
    }

    /// Waits for the oldest batch in flight.
    fn collect_batch(&mut self, logits: &mut [f32]) -> Result<(), DeviceError> {
        while self.in_flight[0].runs > 0 {
            self.collect_run();
        }
        let oldest = self.in_flight.pop_front().expect("a batch is in flight");
        self.spent = oldest.spent?;
        logits.copy_from_slice(&oldest.logits);
        Ok(())
    }

    /// Queues sequences that fit the largest bucket; first waits for free host buffers if there are none.
    fn submit_run(
        &mut self,
        batch: &Packed,
        sequences: Range<usize>,
        mut maxima: Option<&mut [InputMaxima]>,
    ) -> Result<(), DeviceError> {
        if self.free.is_empty() {
            self.collect_run();
        }
        let starts = &batch.starts()[sequences.start..=sequences.end];
        let tokens = starts[0] as usize..starts[starts.len() - 1] as usize;
        let fits = |bucket: &&Bucket| fits(**bucket, tokens.len(), sequences.len());
        let bucket = *self.buckets.iter().find(fits).expect("a run fits the largest bucket");
        let vocabulary = Vocabulary { ids: self.plan.vocabulary() as u32, places: self.plan.tokens_max };
        let text = (&batch.ids()[tokens.clone()], &batch.types()[tokens.clone()]);
        let submission = self.free.last_mut().expect("one is free");
        fill_words(bucket, vocabulary, starts, text, D::words(submission)?);
        let mut submission = self.free.pop().expect("it was there");
        let Self { device, half, stack, arena, batch, .. } = self;
        let launcher = Launcher { device: &*device, half: *half, bucket, batch: &*batch };
        let mut forward = || match &mut maxima {
            None => {
                let mut launches = || stack.forward(&launcher, arena, &mut |_, _| Ok(()));
                device.replay(bucket.tokens as usize, &mut launches)
            }
            Some(maxima) => {
                let mut observe = fp8::record_maxima(&*device, *half, tokens.len(), maxima);
                stack.forward(&launcher, arena, &mut observe)
            }
        };
        let queued = launcher.submit(&mut submission, (&arena.logits, 4 * sequences.len()), &mut forward);
        match queued {
            Ok(()) => self.runs_in_flight.push_back((submission, sequences.len())),
            Err(_) => self.free.push(submission),
        }
        queued
    }

    /// Waits for the oldest run, and stores its logits in its batch.
    fn collect_run(&mut self) {
        let (mut submission, sequences) = self.runs_in_flight.pop_front().expect("a run is in flight");
        let mut bytes = vec![0; 4 * sequences];
        let result = self.device.collect(&mut submission, &mut bytes);
        self.free.push(submission);
        let mut in_flight = self.in_flight.iter_mut();
        let oldest = in_flight.find(|batch| batch.runs > 0).expect("a run belongs to a batch");
        for (logit, &bytes) in oldest.logits[oldest.collected..].iter_mut().zip(bytes.as_chunks().0) {
            *logit = f32::from_le_bytes(bytes);
        }
        (oldest.collected, oldest.runs) = (oldest.collected + sequences, oldest.runs - 1);
        match (result, &mut oldest.spent) {
            (Ok(Some(spent)), Ok(sum)) => *sum = Some(sum.unwrap_or(DeviceNs::ZERO) + spent),
            (Err(error), sum @ Ok(_)) => *sum = Err(error),
            (Ok(None), _) | (_, Err(_)) => {}
        }
    }
}

fn to_score_error(error: DeviceError) -> ScoreError {
    match error {
        DeviceError::OutOfMemory => ScoreError::OutOfMemory,
        DeviceError::Failed(why) => ScoreError::Failed(why),
    }
}

impl<D: Device> Scorer for Cuda<D> {
    fn score(&mut self, batch: &Packed, logits: &mut [f32]) -> Result<(), ScoreError> {
        self.submit(batch)?;
        self.collect(logits)
    }

    fn submit(&mut self, batch: &Packed) -> Result<bool, ScoreError> {
        self.plan.check(batch).map_err(|error| ScoreError::Failed(error.to_string()))?;
        self.submit_batch(batch, None).map_err(to_score_error)?;
        Ok(true)
    }

    fn is_done(&self) -> bool {
        let Some(first) = self.in_flight.front() else { return true };
        let last = first.runs.checked_sub(1).map(|last| &self.runs_in_flight[last].0);
        last.is_none_or(|submission| self.device.is_done(submission))
    }

    fn collect(&mut self, logits: &mut [f32]) -> Result<(), ScoreError> {
        self.collect_batch(logits).map_err(to_score_error)
    }

    fn device_time(&self) -> Option<DeviceNs> {
        self.spent
    }

    fn device_state(&self) -> Option<DeviceState> {
        Some(DeviceState { memory_bytes: self.device.memory_bytes()?, watts: self.device.watts() })
    }
}
