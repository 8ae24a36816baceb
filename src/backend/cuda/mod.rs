//! The CUDA engine: packed, fused forwards in f16 or bf16, or with maps in E4M3 (`eight`), recorded once for each size
//! of batch.
//!
//! A batch goes to the device in one copy, through launches that are the same for all batches of its bucket, and its
//! logits come back in one. All memory is taken when the engine starts.

mod eight;
mod stack;

#[cfg(feature = "cuda")]
use super::Precision;
use super::{DeviceState, ScoreError, Scorer};
use crate::base::DeviceNs;
#[cfg(feature = "cuda")]
use crate::model::Model;
use crate::model::{Encoder, Weights};
#[cfg(feature = "cuda")]
use crate::ops::cuda::Nvidia;
use crate::ops::cuda::{
    Array, Bucket, Device, DeviceError, Edge, Half, Launcher, STRIDE_MAX, Vocabulary, Words,
};
use crate::token::Packed;
pub use eight::sample;
use stack::{Arena, Largest, Stack};
use std::ops::Range;
use thiserror::Error;

/// Tokens of the smallest bucket.
const TOKENS_MIN: u32 = 128;
/// Tokens for each sequence of a bucket: rerankers' pairs are seldom shorter, and the last layer, which has a row a
/// sequence, is a sixteenth of another.
const SEQUENCE_TOKENS: u32 = 16;
/// Buckets from one power of two to the next: at most a fifth of a bucket is empty.
const STEPS: u32 = 4;

/// Tokens of a batch that fill a GPU.
pub const GPU_BATCH_TOKENS: u64 = 16_384;

/// A model on a device, with a stream of its own.
pub struct Cuda<D: Device> {
    device: D,
    half: Half,
    encoder: Encoder,
    stack: Stack<D>,
    arena: Arena<D>,
    batch: Array<D>,
    buckets: Vec<Bucket>,
    words: Words,
    /// What the last batch took.
    spent: Option<DeviceNs>,
}

/// Why a model cannot be on a device.
#[derive(Debug, Error)]
pub enum LoadError {
    /// Its shape has no kernels.
    #[error("{0}; the cpu engine serves it")]
    Shape(String),
    /// Its scores are no numbers in this half.
    #[error("a score is {0} in {1}; bf16 has more room, f32 on a CPU most")]
    NonFinite(f32, &'static str),
    /// The device did not do it.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

#[cfg(feature = "cuda")]
impl Cuda<Nvidia> {
    /// Puts a model on a GPU and runs every bucket once; batches have `tokens_max` tokens. In fp8 it is in f16 still where
    /// that orders a sample otherwise; either is said in the log.
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
            LoadError::Shape(format!("a GPU computes in f16, bf16 or fp8, and not in {}", precision.name()))
        })?;
        let parts = (&model.encoder, &model.weights);
        let mut halves = Self::new(Nvidia::open(ordinal)?, parts, half, tokens_max)?.warmed()?;
        if precision != Precision::Fp8 {
            return Ok(halves);
        }
        let needed = eight::AGREEMENT_MIN;
        let mut eight = || halves.in_eight(Nvidia::open(ordinal)?, parts, &sample(model)?, tokens_max);
        match eight() {
            Ok((eight, agreement)) if agreement >= needed => {
                tracing::info!(agreement, needed, "fp8 orders a sample as f16 does");
                Ok(eight)
            }
            Ok((_, agreement)) => {
                tracing::warn!(agreement, needed, "fp8 does not order a sample as f16 does: f16 is used");
                Ok(halves)
            }
            // A GPU before sm_89, or one that has no room for both.
            Err(error) => {
                tracing::warn!(%error, "fp8 cannot be had: f16 is used");
                Ok(halves)
            }
        }
    }
}

impl<D: Device> Cuda<D> {
    /// Puts a model on a device, with memory for batches of `tokens_max` tokens; larger ones are cut.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn new(
        device: D,
        model: (&Encoder, &Weights),
        half: Half,
        tokens_max: u64,
    ) -> Result<Self, LoadError> {
        Self::load(device, model, (half, None), tokens_max)
    }

    /// The same, with maps in E4M3 where the largest inputs of each layer's are given.
    fn load(
        device: D,
        model: (&Encoder, &Weights),
        (half, largest): (Half, Option<&[Largest]>),
        tokens_max: u64,
    ) -> Result<Self, LoadError> {
        let encoder = model.0;
        Self::check(encoder)?;
        let longest = encoder.pair_tokens_max();
        let buckets = buckets(u32::try_from(tokens_max).unwrap_or(u32::MAX).max(longest));
        let bucket = *buckets.last().expect("there is a bucket");
        let stack = Stack::load(&device, model, half, largest)?;
        let arena = stack.arena(&device, bucket)?;
        let batch = Array::new(&device, 4 * bucket.words())?;
        Ok(Self {
            device,
            half,
            encoder: encoder.clone(),
            stack,
            arena,
            batch,
            buckets,
            words: Words::default(),
            spent: None,
        })
    }

    /// Runs a batch of every bucket once, so that all is planned, recorded and known to fit before requests come.
    ///
    /// # Errors
    /// [`LoadError`], also where a score is not finite.
    pub fn warmed(mut self) -> Result<Self, LoadError> {
        for bucket in self.buckets.clone() {
            let length = bucket.tokens.min(self.encoder.pair_tokens_max()) as usize;
            let mut batch = Packed::default();
            for _ in 0..bucket.tokens as usize / length {
                batch.push((0..length).map(|_| (0, 0)));
            }
            let mut logits = vec![0.0; batch.len()];
            self.run(&batch, 0..batch.len(), &mut logits)?;
            if let Some(logit) = logits.iter().find(|logit| !logit.is_finite()) {
                return Err(LoadError::NonFinite(*logit, self.half.name()));
            }
        }
        Ok(self)
    }

    /// What its linear maps are computed in, `float16` for example.
    pub fn dtype(&self) -> &'static str {
        if self.stack.is_eight() { "float8_e4m3" } else { self.half.dtype() }
    }

    /// Where it runs.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// Refuses a shape that the kernels do not have.
    ///
    /// # Errors
    /// [`LoadError::Shape`].
    fn check(encoder: &Encoder) -> Result<(), LoadError> {
        let head = encoder.hidden / encoder.heads;
        if head > 64 {
            return Err(LoadError::Shape(format!("heads of {head} values are more than the kernels' 64")));
        }
        if encoder.hidden > STRIDE_MAX {
            let hidden = encoder.hidden;
            return Err(LoadError::Shape(format!(
                "a width of {hidden} is more than the kernels' {STRIDE_MAX}"
            )));
        }
        Ok(())
    }

    /// Copies sequences to the device, and gives the number of their bucket, and the bucket.
    fn bring(&mut self, batch: &Packed, sequences: Range<usize>) -> Result<(usize, Bucket), DeviceError> {
        let starts = &batch.starts()[sequences.start..=sequences.end];
        let tokens = starts[0] as usize..starts[starts.len() - 1] as usize;
        let (number, bucket) = self
            .buckets
            .iter()
            .copied()
            .enumerate()
            .find(|(_, bucket)| fits(*bucket, tokens.len(), sequences.len()))
            .expect("a run fits the largest bucket");
        let vocabulary =
            Vocabulary { ids: self.encoder.vocabulary as u32, places: self.encoder.pair_tokens_max() };
        let text = (&batch.ids()[tokens.clone()], &batch.types()[tokens]);
        let words = self.words.fill(bucket, vocabulary, starts, text);
        self.device.mark(Edge::Start)?;
        self.batch.write(&self.device, words)?;
        Ok((number, bucket))
    }

    fn launcher(&self, bucket: Bucket) -> Launcher<'_, D> {
        Launcher { device: &self.device, half: self.half, bucket, batch: &self.batch }
    }

    /// Scores every sequence, in as many runs as it takes.
    fn run_all(&mut self, batch: &Packed, logits: &mut [f32]) -> Result<(), DeviceError> {
        self.spent = None;
        for run in runs(batch, *self.buckets.last().expect("there is a bucket")) {
            let logits = &mut logits[run.clone()];
            self.run(batch, run, logits)?;
        }
        Ok(())
    }

    /// Scores whole sequences that fit the largest bucket.
    fn run(
        &mut self,
        batch: &Packed,
        sequences: Range<usize>,
        logits: &mut [f32],
    ) -> Result<(), DeviceError> {
        let (number, bucket) = self.bring(batch, sequences)?;
        let launcher = self.launcher(bucket);
        let mut launches = || self.stack.forward(&launcher, &self.arena, &mut |_, _| Ok(()));
        self.device.replay(number, &mut launches)?;
        self.device.mark(Edge::End)?;
        let mut bytes = vec![0; 4 * logits.len()];
        self.arena.logits.read(&self.device, &mut bytes)?;
        for (logit, &bytes) in logits.iter_mut().zip(bytes.as_chunks().0) {
            *logit = f32::from_le_bytes(bytes);
        }
        self.spent = self.device.spent().map(|spent| spent + self.spent.unwrap_or(DeviceNs::ZERO));
        Ok(())
    }
}

impl<D: Device> Scorer for Cuda<D> {
    fn score(&mut self, batch: &Packed, logits: &mut [f32]) -> Result<(), ScoreError> {
        self.encoder.check(batch).map_err(|error| ScoreError::Failed(error.to_string()))?;
        self.run_all(batch, logits).map_err(|error| match error {
            DeviceError::OutOfMemory => ScoreError::OutOfMemory,
            DeviceError::Failed(why) => ScoreError::Failed(why),
        })
    }

    fn device_time(&self) -> Option<DeviceNs> {
        self.spent
    }

    fn device_state(&self) -> Option<DeviceState> {
        Some(DeviceState { memory_bytes: self.device.memory_bytes()?, watts: self.device.watts() })
    }
}

/// Sizes from the smallest up to one that has room for `tokens_max`.
fn buckets(tokens_max: u32) -> Vec<Bucket> {
    let mut buckets = Vec::new();
    let mut tokens = TOKENS_MIN;
    loop {
        buckets.push(Bucket { tokens, sequences: tokens / SEQUENCE_TOKENS });
        if tokens >= tokens_max {
            return buckets;
        }
        tokens += (1 << tokens.ilog2()) / STEPS;
    }
}

fn fits(bucket: Bucket, tokens: usize, sequences: usize) -> bool {
    tokens <= bucket.tokens as usize && sequences <= bucket.sequences as usize
}

/// Whole sequences, as many as the largest bucket holds.
fn runs(batch: &Packed, largest: Bucket) -> Vec<Range<usize>> {
    let starts = batch.starts();
    let mut runs: Vec<Range<usize>> = Vec::new();
    for sequence in 0..batch.len() {
        match runs.last_mut() {
            Some(run)
                if fits(
                    largest,
                    (starts[sequence + 1] - starts[run.start]) as usize,
                    sequence + 1 - run.start,
                ) =>
            {
                run.end += 1;
            }
            _ => runs.push(sequence..sequence + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_waste_at_most_a_fifth() {
        let buckets = buckets(5000);
        let sizes: Vec<u32> = buckets.iter().map(|bucket| bucket.tokens).collect();
        assert_eq!(sizes[..9], [128, 160, 192, 224, 256, 320, 384, 448, 512]);
        assert_eq!(*sizes.last().unwrap(), 5120);
        assert!(sizes.windows(2).all(|pair| pair[1] * 4 <= pair[0] * 5));
    }

    #[test]
    fn runs_are_whole_sequences_within_the_largest_bucket() {
        let largest = Bucket { tokens: 100, sequences: 3 };
        let mut batch = Packed::default();
        for length in [60, 40, 1, 90, 1, 1, 1, 100] {
            batch.push((0..length).map(|_| (1, 0)));
        }
        assert_eq!(runs(&batch, largest), [0..2, 2..5, 5..7, 7..8]);
        assert!(runs(&Packed::default(), largest).is_empty());
    }
}
