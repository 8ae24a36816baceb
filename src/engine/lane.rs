//! One thread a scorer: packs what the driver sends, runs it, and reports. Where the scorer can queue, the next batch is
//! packed and queued while one is at work.

use super::clock::Clock;
use super::driver::Message;
use super::mailbox::{Mailbox, Post, mailbox};
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

/// How often a device that works is asked how it is.
const TELL_EVERY: Ns = Ns::from_millis(250);

/// Batches that a scorer has at once: more would only wait for longer.
const FLIGHTS_MAX: usize = 2;

/// Makes a lane's scorer; called on the lane's own thread, again after each fault.
pub type MakeScorer = Arc<dyn Fn() -> Result<Box<dyn Scorer>, String> + Send + Sync>;

/// What a lane's thread needs to exist.
pub(super) struct Spawn {
    pub lane: LaneId,
    /// Counts the lane's restarts, so that reports of a thread that was given up are known.
    pub generation: u32,
    pub make: MakeScorer,
    /// How long to wait before making it.
    pub wait: Ns,
    pub template: Arc<Template>,
    /// The batches to warm up with, in this order.
    pub warm_up: Arc<[Packed]>,
    /// Warm-up ends early once a batch takes this long: no batch that long is ever formed.
    pub warm_up_ns_max: Ns,
    /// Batches that it is sent before the first has ended.
    pub depth: usize,
    pub clock: Clock,
    pub driver: Post<Message>,
}

/// A batch to run: the pairs of each job, and which of them.
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

/// A batch that the scorer was given and that has not been reported.
struct Flight {
    batch: BatchId,
    /// When the scorer was given it, or had the one before behind it.
    begun: Ns,
    logits: Vec<f32>,
    /// How it ended, or none while it is under way.
    ended: Option<Result<(), Fault>>,
}

impl Flight {
    /// Whether it has ended, being the first that the scorer was given.
    fn has_ended(&self, scorer: &dyn Scorer) -> bool {
        self.ended.is_some() || scorer.is_ended()
    }
}

/// What a lane's thread has to say.
pub(super) struct Report {
    pub lane: LaneId,
    pub generation: u32,
    pub news: News,
}

pub(super) enum News {
    /// The scorer is made, and these are its warm-up runs.
    Up(Vec<Measured>),
    /// How the lane's device is.
    Device(DeviceState),
    /// The scorer could not be made; the thread has ended.
    Down(String),
    /// A batch ended; with one logit for each pair, slices end to end, where it succeeded.
    Ended { done: Done, logits: Vec<f32> },
}

impl Spawn {
    /// Starts the thread and returns the way to give it work; it ends when that is dropped.
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
            // Nobody sends work to a lane that is not up: this only waits, or ends with the driver.
            let until = self.clock.instant(self.clock.now() + self.wait);
            if let Err(RecvTimeoutError::Disconnected) = work.recv_until(Some(until)) {
                return;
            }
        }
        let made = catch_unwind(AssertUnwindSafe(|| self.make_and_warm()));
        let (mut scorer, measured) = match made {
            Ok(Ok(made)) => made,
            Ok(Err(why)) => return self.report(News::Down(why)),
            Err(panic) => return self.report(News::Down(message_of(&panic))),
        };
        self.tell(scorer.as_ref());
        self.report(News::Up(measured));
        let mut told_at = self.clock.now();
        let mut packed = Packed::default();
        let mut flights: VecDeque<Flight> = VecDeque::new();
        // The one that is packed.
        let mut next = None;
        loop {
            if next.is_none() {
                let work = match flights.front() {
                    None => work.recv_until(None).ok(),
                    Some(_) if flights.len() == self.depth.min(FLIGHTS_MAX) => None,
                    Some(first) => next_before_end(work, scorer.as_ref(), first),
                };
                next = work.map(|work| {
                    work.pack(&self.template, &mut packed);
                    work.batch
                });
            }
            // What has ended while it was packed is told first.
            let is_first_ended = flights.front().is_some_and(|first| first.has_ended(scorer.as_ref()));
            if let Some(batch) = next.filter(|_| !is_first_ended) {
                flights.push_back(self.begin(scorer.as_mut(), batch, &packed));
                next = None;
                continue;
            }
            // Without a batch under way there is none only when nobody is left to send one.
            let Some(flight) = flights.pop_front() else { return };
            let (done, logits) = self.end(scorer.as_mut(), flight);
            if let Some(next) = flights.front_mut() {
                next.begun = self.clock.now();
            }
            if matches!(done.result, Err(fault) if fault != Fault::OutOfMemory) {
                // The driver restarts the lane with a fresh scorer on a fresh thread, which needs this one's memory.
                // That is free when what is queued has ended, too; the driver has that done again.
                drop(scorer);
                return self.report(News::Ended { done, logits });
            }
            self.report(News::Ended { done, logits });
            if self.clock.now() >= told_at + TELL_EVERY {
                self.tell(scorer.as_ref());
                told_at = self.clock.now();
            }
        }
    }

    /// Gives the scorer a batch: queues it where it can, else scores it.
    fn begin(&self, scorer: &mut dyn Scorer, batch: BatchId, packed: &Packed) -> Flight {
        let mut logits = vec![0.0; packed.len()];
        let begun = self.clock.now();
        let ended = match self.caught(|| scorer.begin(packed)) {
            Ok(true) => None,
            Ok(false) => Some(self.score(scorer, packed, &mut logits)),
            Err(fault) => Some(Err(fault)),
        };
        Flight { batch, begun, logits, ended }
    }

    /// Waits for a batch that was given to the scorer before all others that are under way.
    fn end(&self, scorer: &mut dyn Scorer, flight: Flight) -> (Done, Vec<f32>) {
        let Flight { batch, begun, mut logits, ended } = flight;
        let end = || self.caught(|| scorer.end(&mut logits)).and_then(|()| self.finite(&logits));
        let result = ended.unwrap_or_else(end);
        let took = self.clock.now().saturating_sub(begun);
        // Where the device does not tell what it spent, it was at it all the time.
        let told = scorer.device_time().filter(|_| result.is_ok());
        let device = told.map_or(DeviceNs(took.0), |told| told.min(DeviceNs(took.0)));
        (Done { lane: self.lane, batch, device, took, result }, logits)
    }

    fn tell(&self, scorer: &dyn Scorer) {
        if let Some(state) = scorer.device_state() {
            self.report(News::Device(state));
        }
    }

    fn make_and_warm(&self) -> Result<(Box<dyn Scorer>, Vec<Measured>), String> {
        let mut scorer = (self.make)()?;
        let mut measured = Vec::new();
        for packed in self.warm_up.iter() {
            let mut logits = vec![0.0; packed.len()];
            let mut took = Ns::MAX;
            // The first run of a size pays for allocations; the second is like all that follow.
            for _ in 0..2 {
                let started = self.clock.now();
                match self.score(scorer.as_mut(), packed, &mut logits) {
                    Ok(()) => took = took.min(self.clock.now().saturating_sub(started)),
                    // Larger batches will not fit either; the scheduler learns the bound as it goes.
                    Err(Fault::OutOfMemory) => return Ok((scorer, measured)),
                    Err(Fault::NonFinite) => return Err("a warm-up score is not finite".to_owned()),
                    Err(Fault::Failed | Fault::Stalled) => return Err("the warm-up failed".to_owned()),
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
        self.caught(|| scorer.score(packed, logits))?;
        self.finite(logits)
    }

    /// Runs a part of a scorer; what goes wrong is said in the log.
    fn caught<T>(&self, run: impl FnOnce() -> Result<T, ScoreError>) -> Result<T, Fault> {
        let lane = self.lane.0;
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(ScoreError::OutOfMemory)) => {
                tracing::warn!(lane, "out of memory");
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

    fn finite(&self, logits: &[f32]) -> Result<(), Fault> {
        if logits.iter().all(|logit| logit.is_finite()) {
            return Ok(());
        }
        tracing::error!(lane = self.lane.0, "a score is not finite");
        Err(Fault::NonFinite)
    }

    fn report(&self, news: News) {
        let report = Report { lane: self.lane, generation: self.generation, news };
        // A driver that is gone has no use for news.
        let _ = self.driver.send(Message::Report(report));
    }
}

/// The next batch, if it comes before the first one ends.
fn next_before_end(work: &Mailbox<Work>, scorer: &dyn Scorer, first: &Flight) -> Option<Work> {
    // A device wakes nobody: whoever waits for one asks it over and over, as CUDA's own wait does.
    while !first.has_ended(scorer) {
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
