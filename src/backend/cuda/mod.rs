//! The CUDA engine: packed, fused forwards in f16 or bf16, or with maps in E4M3 (`eight`), recorded once for each size
//! of batch.
//!
//! A batch goes to the device in one copy, through launches that are the same for all batches of its bucket, and its
//! logits come back in one. While one is at work the next is queued behind it. All memory is taken when the engine
//! starts.

mod buckets;
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
    Array, Bucket, Device, DeviceError, Half, Launcher, STRIDE_MAX, Vocabulary, fill_words,
};
use crate::token::Packed;
use buckets::{buckets, fits, runs};
pub use eight::sample;
use stack::{Arena, Largest, Stack};
use std::collections::VecDeque;
use std::ops::Range;
use thiserror::Error;

/// Runs that are on the device at once. One is at work and one behind it; batches of the shortest pairs have up to four
/// each.
const TRIPS: usize = 8;

/// Tokens of a batch that fill a GPU.
pub const GPU_BATCH_TOKENS: u64 = 16_384;

/// A model on a device, with a stream of its own.
pub struct Cuda<D: Device> {
    /// Runs that are on the device, the first one first, with how many sequences each has. Dropped before all that they
    /// work with, as that waits for them.
    under_way: VecDeque<(D::Trip, usize)>,
    device: D,
    half: Half,
    encoder: Encoder,
    stack: Stack<D>,
    arena: Arena<D>,
    batch: Array<D>,
    buckets: Vec<Bucket>,
    /// Those that are not under way.
    trips: Vec<D::Trip>,
    /// Batches that were begun and not ended, the first one first.
    flights: VecDeque<Flight>,
    /// What the last batch took.
    spent: Option<DeviceNs>,
}

/// A batch between its begin and its end.
struct Flight {
    logits: Vec<f32>,
    /// Logits that have come back, and runs that have not.
    landed: usize,
    runs: usize,
    /// What the device spent on those, or why there are none.
    spent: Result<Option<DeviceNs>, DeviceError>,
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
    /// Puts a model on a GPU and runs every bucket once; batches have `tokens_max` tokens. In fp8 it is in f16 still
    /// where that orders a sample otherwise; either is said in the log.
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
        let trip = |_| device.trip(bucket.words(), 4 * bucket.sequences as usize);
        let trips = (0..TRIPS).map(trip).collect::<Result<_, _>>()?;
        Ok(Self {
            under_way: VecDeque::new(),
            device,
            half,
            encoder: encoder.clone(),
            stack,
            arena,
            batch,
            buckets,
            trips,
            flights: VecDeque::new(),
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
            let tokens = bucket.tokens as usize;
            for start in (0..tokens).step_by(length) {
                batch.push((start..tokens.min(start + length)).map(|_| (0, 0)));
            }
            let mut logits = vec![0.0; batch.len()];
            self.run_all(&batch, &mut logits)?;
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

    /// Scores every sequence, in as many runs as it takes.
    fn run_all(&mut self, batch: &Packed, logits: &mut [f32]) -> Result<(), DeviceError> {
        self.begin_all(batch, None)?;
        self.end_first(logits)
    }

    /// Queues a batch, or nothing of it; raises each layer's largest inputs to those of the batch, where they are asked
    /// for.
    fn begin_all(&mut self, batch: &Packed, mut largest: Option<&mut [Largest]>) -> Result<(), DeviceError> {
        let runs = runs(batch, *self.buckets.last().expect("there is a bucket"));
        let logits = vec![0.0; batch.len()];
        self.flights.push_back(Flight { logits, landed: 0, runs: runs.len(), spent: Ok(None) });
        let queued = runs.into_iter().try_for_each(|run| self.queue(batch, run, largest.as_deref_mut()));
        if queued.is_err() {
            while !self.under_way.is_empty() {
                self.land();
            }
            self.flights.pop_back();
        }
        queued
    }

    /// Waits for the batch that was begun first.
    fn end_first(&mut self, logits: &mut [f32]) -> Result<(), DeviceError> {
        while self.flights[0].runs > 0 {
            self.land();
        }
        let flight = self.flights.pop_front().expect("a batch is under way");
        self.spent = flight.spent?;
        logits.copy_from_slice(&flight.logits);
        Ok(())
    }

    /// Queues whole sequences that fit the largest bucket, once there is a trip for them.
    fn queue(
        &mut self,
        batch: &Packed,
        sequences: Range<usize>,
        mut largest: Option<&mut [Largest]>,
    ) -> Result<(), DeviceError> {
        if self.trips.is_empty() {
            self.land();
        }
        let starts = &batch.starts()[sequences.start..=sequences.end];
        let tokens = starts[0] as usize..starts[starts.len() - 1] as usize;
        let fits = |bucket: &&Bucket| fits(**bucket, tokens.len(), sequences.len());
        let bucket = *self.buckets.iter().find(fits).expect("a run fits the largest bucket");
        let vocabulary =
            Vocabulary { ids: self.encoder.vocabulary as u32, places: self.encoder.pair_tokens_max() };
        let text = (&batch.ids()[tokens.clone()], &batch.types()[tokens.clone()]);
        let trip = self.trips.last_mut().expect("one has landed");
        fill_words(bucket, vocabulary, starts, text, D::words(trip)?);
        let mut trip = self.trips.pop().expect("it was there");
        let Self { device, half, stack, arena, batch, .. } = self;
        let launcher = Launcher { device: &*device, half: *half, bucket, batch: &*batch };
        let mut forward = || match &mut largest {
            None => {
                let mut launches = || stack.forward(&launcher, arena, &mut |_, _| Ok(()));
                device.replay(bucket.tokens as usize, &mut launches)
            }
            Some(largest) => {
                let mut hear = eight::listen(&*device, *half, tokens.len(), largest);
                stack.forward(&launcher, arena, &mut hear)
            }
        };
        let queued = launcher.travel(&mut trip, (&arena.logits, 4 * sequences.len()), &mut forward);
        match queued {
            Ok(()) => self.under_way.push_back((trip, sequences.len())),
            Err(_) => self.trips.push(trip),
        }
        queued
    }

    /// Waits for the first run, and puts its logits to those of its batch.
    fn land(&mut self) {
        let (mut trip, sequences) = self.under_way.pop_front().expect("a run is under way");
        let mut bytes = vec![0; 4 * sequences];
        let taken = self.device.take(&mut trip, &mut bytes);
        self.trips.push(trip);
        let mut flights = self.flights.iter_mut();
        let flight = flights.find(|flight| flight.runs > 0).expect("a run is a batch's");
        for (logit, &bytes) in flight.logits[flight.landed..].iter_mut().zip(bytes.as_chunks().0) {
            *logit = f32::from_le_bytes(bytes);
        }
        (flight.landed, flight.runs) = (flight.landed + sequences, flight.runs - 1);
        match (taken, &mut flight.spent) {
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
        self.begin(batch)?;
        self.end(logits)
    }

    fn begin(&mut self, batch: &Packed) -> Result<bool, ScoreError> {
        self.encoder.check(batch).map_err(|error| ScoreError::Failed(error.to_string()))?;
        self.begin_all(batch, None).map_err(to_score_error)?;
        Ok(true)
    }

    fn is_ended(&self) -> bool {
        let Some(first) = self.flights.front() else { return true };
        let last = first.runs.checked_sub(1).map(|last| &self.under_way[last].0);
        last.is_none_or(|trip| self.device.is_back(trip))
    }

    fn end(&mut self, logits: &mut [f32]) -> Result<(), ScoreError> {
        self.end_first(logits).map_err(to_score_error)
    }

    fn device_time(&self) -> Option<DeviceNs> {
        self.spent
    }

    fn device_state(&self) -> Option<DeviceState> {
        Some(DeviceState { memory_bytes: self.device.memory_bytes()?, watts: self.device.watts() })
    }
}
