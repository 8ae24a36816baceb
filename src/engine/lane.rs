//! A lane's thread, one per scorer: packs the batches that the driver sends, runs them, and reports. If the scorer has a
//! queue, the next batch is packed and queued while one is running.

use super::clock::Clock;
use super::driver::Message;
use super::mailbox::{Mailbox, Post, mailbox};
use super::self_check::{SelfCheck, SelfCheckError};
use crate::backend::{DeviceState, ScoreError, Scorer};
use crate::base::{DeviceNs, Ns};
use crate::forecast::predict::{Load, Measured};
use crate::sched::{BatchId, Done, Fault, LaneId, Slice};
use crate::token::{Packed, Pair, Template};
use crossbeam_channel::RecvTimeoutError;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

/// How often the state of a busy device is reported.
const DEVICE_STATE_EVERY: Ns = Ns::from_millis(250);

/// Most batches in a scorer's queue: one runs and one waits. More would only wait longer.
const IN_FLIGHT_MAX: usize = 2;

/// Makes a lane's scorer. Called on the lane's thread, and again after each fault.
pub type MakeScorer = Arc<dyn Fn() -> Result<Box<dyn Scorer>, String> + Send + Sync>;

/// A lane's thread that is not started yet.
pub(super) struct Spawn {
    pub lane: LaneId,
    /// Counts the lane's restarts. The driver ignores reports of earlier generations.
    pub generation: u32,
    pub make: MakeScorer,
    /// How long to wait before making it.
    pub wait: Ns,
    pub template: Arc<Template>,
    /// What it scores before it is ready.
    pub self_check: Option<Arc<SelfCheck>>,
    /// The batches to warm up with, in this order.
    pub warm_up: Arc<[Packed]>,
    /// Warm-up ends once a batch takes this long, because the scheduler never forms a batch that long.
    pub warm_up_ns_max: Ns,
    /// Most batches that the scheduler sends before the first has ended.
    pub depth: usize,
    pub clock: Clock,
    pub driver: Post<Message>,
}

/// A batch to run: slices of jobs, each with the pairs of its job.
pub(super) struct Work {
    pub batch: BatchId,
    pub slices: Vec<(Slice, Arc<[Pair]>)>,
}

impl Work {
    fn pack(&self, template: &Template, packed: &mut Packed) {
        packed.clear();
        for (slice, pairs) in &self.slices {
            for candidate in slice.candidates() {
                pairs[candidate].push_into(packed, template);
            }
        }
    }
}

/// A batch that was submitted to the scorer and not reported to the driver.
struct InFlight {
    batch: BatchId,
    /// When it became the oldest batch in the scorer's queue: its submission, or the end of the batch before it.
    begun: Ns,
    logits: Vec<f32>,
    /// Its result; none while it is running or queued.
    result: Option<Result<(), Fault>>,
}

impl InFlight {
    /// Whether it has ended. Asked only for the oldest batch.
    fn is_done(&self, scorer: &dyn Scorer) -> bool {
        self.result.is_some() || scorer.is_done()
    }
}

/// A message from a lane's thread to the driver.
pub(super) struct Report {
    pub lane: LaneId,
    pub generation: u32,
    pub event: LaneEvent,
}

pub(super) enum LaneEvent {
    /// The scorer is warm; these are the times of its warm-up runs.
    Up(Vec<Measured>),
    /// The state of the lane's device.
    Device(DeviceState),
    /// The scorer could not be made, and the thread has ended.
    Down(String),
    /// The model does not give its golden scores, and the thread has ended.
    Unfit(String),
    /// A batch ended. After success `logits` has one value per pair, slice after slice.
    Ended { done: Done, logits: Vec<f32> },
}

impl Spawn {
    /// Starts the thread and returns the sender of its work. The thread ends when the sender is dropped.
    pub fn start(self) -> Post<Work> {
        let (sender, receiver) = mailbox();
        thread::Builder::new()
            .name(format!("lane-{}", self.lane.0))
            .spawn(move || self.run(&receiver))
            .expect("the system has room for one more thread");
        sender
    }

    fn run(self, work: &Mailbox<Work>) {
        if self.wait > Ns::ZERO {
            // No work is sent to a lane that is not up, so this waits for the time or for the driver's end.
            let until = self.clock.instant(self.clock.now() + self.wait);
            if let Err(RecvTimeoutError::Disconnected) = work.recv_until(Some(until)) {
                return;
            }
        }
        let made = catch_unwind(AssertUnwindSafe(|| self.make_and_warm()));
        let (mut scorer, measured) = match made {
            Ok(Ok(made)) => made,
            Ok(Err(event)) => return self.report(event),
            Err(panic) => return self.report(LaneEvent::Down(message_of(&panic))),
        };
        self.report_device(scorer.as_ref());
        self.report(LaneEvent::Up(measured));
        let mut device_reported = self.clock.now();
        let mut packed = Packed::default();
        let mut in_flight: VecDeque<InFlight> = VecDeque::new();
        // The batch in `packed`.
        let mut next = None;
        loop {
            if next.is_none() {
                let work = match in_flight.front() {
                    None => work.recv_until(None).ok(),
                    Some(_) if in_flight.len() == self.depth.min(IN_FLIGHT_MAX) => None,
                    Some(first) => next_before_done(work, scorer.as_ref(), first),
                };
                next = work.map(|work| {
                    work.pack(&self.template, &mut packed);
                    work.batch
                });
            }
            // A batch that ended meanwhile is reported before the next one is submitted.
            let is_first_done = in_flight.front().is_some_and(|first| first.is_done(scorer.as_ref()));
            if let Some(batch) = next.filter(|_| !is_first_done) {
                in_flight.push_back(self.submit(scorer.as_mut(), batch, &packed));
                next = None;
                continue;
            }
            // With nothing in flight `recv_until` returned an error: the driver has dropped the sender.
            let Some(oldest) = in_flight.pop_front() else { return };
            let (done, logits) = self.collect(scorer.as_mut(), oldest);
            if let Some(next) = in_flight.front_mut() {
                next.begun = self.clock.now();
            }
            if matches!(done.result, Err(fault) if fault != Fault::OutOfMemory) {
                // The driver restarts the lane with a new scorer on a new thread. That needs this scorer's memory, so it
                // is dropped first, which waits for batches still queued. The scheduler runs those again.
                drop(scorer);
                return self.report(LaneEvent::Ended { done, logits });
            }
            self.report(LaneEvent::Ended { done, logits });
            if self.clock.now() >= device_reported + DEVICE_STATE_EVERY {
                self.report_device(scorer.as_ref());
                device_reported = self.clock.now();
            }
        }
    }

    /// Queues a batch if the scorer has a queue, else scores it.
    fn submit(&self, scorer: &mut dyn Scorer, batch: BatchId, packed: &Packed) -> InFlight {
        let mut logits = vec![0.0; packed.len()];
        let begun = self.clock.now();
        let result = match self.guarded(|| scorer.submit(packed)) {
            Ok(true) => None,
            Ok(false) => Some(self.score(scorer, packed, &mut logits)),
            Err(fault) => Some(Err(fault)),
        };
        InFlight { batch, begun, logits, result }
    }

    /// Waits for the oldest batch in flight.
    fn collect(&self, scorer: &mut dyn Scorer, oldest: InFlight) -> (Done, Vec<f32>) {
        let InFlight { batch, begun, mut logits, result } = oldest;
        let collect =
            || self.guarded(|| scorer.collect(&mut logits)).and_then(|()| self.check_finite(&logits));
        let result = result.unwrap_or_else(collect);
        let took = self.clock.now().saturating_sub(begun);
        // A device that does not measure its time is taken to have worked the whole time.
        let told = scorer.device_time().filter(|_| result.is_ok());
        let device = told.map_or(DeviceNs(took.0), |told| told.min(DeviceNs(took.0)));
        (Done { lane: self.lane, batch, device, took, result }, logits)
    }

    fn report_device(&self, scorer: &dyn Scorer) {
        if let Some(state) = scorer.device_state() {
            self.report(LaneEvent::Device(state));
        }
    }

    /// # Errors
    /// What is reported: [`LaneEvent::Down`] or [`LaneEvent::Unfit`].
    fn make_and_warm(&self) -> Result<(Box<dyn Scorer>, Vec<Measured>), LaneEvent> {
        let down = |why: &str| LaneEvent::Down(why.to_owned());
        let mut scorer = (self.make)().map_err(LaneEvent::Down)?;
        if let Some(check) = &self.self_check {
            check.run(scorer.as_mut()).map_err(|error| match error {
                SelfCheckError::Mismatch { .. } => LaneEvent::Unfit(error.to_string()),
                // The device's fault, not the model's.
                SelfCheckError::Failed { .. } => LaneEvent::Down(error.to_string()),
            })?;
        }
        let mut measured = Vec::new();
        for packed in self.warm_up.iter() {
            let mut logits = vec![0.0; packed.len()];
            let mut took = Ns::MAX;
            // The first run of a size includes allocations; the second is typical.
            for _ in 0..2 {
                let started = self.clock.now();
                match self.score(scorer.as_mut(), packed, &mut logits) {
                    Ok(()) => took = took.min(self.clock.now().saturating_sub(started)),
                    // Larger batches will not fit either. The scheduler learns the bound when batches fail.
                    Err(Fault::OutOfMemory) => return Ok((scorer, measured)),
                    Err(Fault::NonFinite) => return Err(down("a warm-up score is not finite")),
                    Err(Fault::Failed | Fault::Stalled) => return Err(down("the warm-up failed")),
                }
            }
            measured.push(Measured { load: Load::of(packed.lengths()), took: DeviceNs(took.0) });
            if took > self.warm_up_ns_max {
                break;
            }
        }
        Ok((scorer, measured))
    }

    fn score(&self, scorer: &mut dyn Scorer, packed: &Packed, logits: &mut [f32]) -> Result<(), Fault> {
        self.guarded(|| scorer.score(packed, logits))?;
        self.check_finite(logits)
    }

    /// Calls the scorer; turns errors and panics into faults and logs them.
    fn guarded<T>(&self, run: impl FnOnce() -> Result<T, ScoreError>) -> Result<T, Fault> {
        let lane = self.lane.0;
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(ScoreError::OutOfMemory)) => {
                tracing::warn!(lane, "the device is out of memory");
                Err(Fault::OutOfMemory)
            }
            Ok(Err(ScoreError::Failed(why))) => {
                tracing::error!(lane, why, "the scorer failed");
                Err(Fault::Failed)
            }
            Err(panic) => {
                tracing::error!(lane, why = message_of(&panic), "the scorer panicked");
                Err(Fault::Failed)
            }
        }
    }

    fn check_finite(&self, logits: &[f32]) -> Result<(), Fault> {
        if logits.iter().all(|logit| logit.is_finite()) {
            return Ok(());
        }
        tracing::error!(lane = self.lane.0, "a score is not finite");
        Err(Fault::NonFinite)
    }

    fn report(&self, event: LaneEvent) {
        let report = Report { lane: self.lane, generation: self.generation, event };
        // Fails only if the driver has ended.
        let _ = self.driver.send(Message::Report(report));
    }
}

/// Waits for the next batch until the oldest one in flight has ended.
fn next_before_done(work: &Mailbox<Work>, scorer: &dyn Scorer, first: &InFlight) -> Option<Work> {
    // CUDA gives no wake-up, so the lane polls, as CUDA's own wait does.
    while !first.is_done(scorer) {
        if let Some(work) = work.try_recv() {
            return Some(work);
        }
        thread::yield_now();
    }
    None
}

fn message_of(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|message| (*message).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned())
}
