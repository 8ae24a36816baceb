//! Floor 3: the scheduler. Pure: events in, actions out, time as an argument.
//!
//! It knows ids, token lengths, deadlines and lanes. It decides which work runs where and when, which tier answers a
//! job, and which jobs are refused. It has no text, tensor, channel, clock, thread, randomness or hash order, and equal
//! events give equal actions. The server (`engine`) and the simulation (`sim`) run the same code.
//!
//! | file | when it decides |
//! |---|---|
//! | `admit` | a job arrives: full, top-k, fallback or refuse, by predicted finish times |
//! | `batch` | a lane has room: which jobs it gets, and how much of each |
//! | `hedge` | a budget is nearly spent: which jobs will be late |
//! | `settle` | a batch ends: charge, learn, or recover from a fault |
//! | `stage` | all transitions of a job, in one table |
//! | `line` | a job's place in a model's queue |
//! | `model` | what a model has: a queue, a predictor, lanes |
//! | `check` | the invariants, for the simulation |

mod admit;
mod batch;
mod check;
mod config;
mod event;
mod hedge;
mod horizon;
mod job;
mod lane;
mod line;
mod model;
mod queue;
mod settle;
mod stage;
#[cfg(test)]
mod tests;

pub use crate::base::LaneId;
pub use config::{Config, LaneConfig, Limits, TenantConfig};
pub use event::{
    Action, Answer, Arrival, Ask, BatchId, Dispatch, Done, Event, Fault, JobId, Line, Slice, digest,
};
pub use model::Gauge;

use crate::base::{DeviceId, DeviceNs, ModelId, Ns, Slots, TenantId, Tier};
use crate::rerank::{Degradation, Refusal, Served};
use admit::Quota;
use hedge::HedgeTokens;
use job::Job;
use lane::Lane;
use model::Model;
use stage::Stage;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

/// With fewer timers than this, timers of finished jobs are not removed.
const TIMERS_MIN: usize = 4_096;

/// The scheduler's state between events.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    now: Ns,
    draining: bool,
    jobs: HashMap<JobId, Job, BuildHasherDefault<IdHasher>>,
    /// Pairs of all jobs inside.
    pairs: u64,
    models: Slots<ModelId, Model>,
    /// Models whose lanes are released once no job of theirs is inside.
    retired: Vec<ModelId>,
    lanes: Slots<LaneId, Lane>,
    /// The tenants' weights.
    weights: Vec<u32>,
    quotas: Vec<Quota>,
    hedges: HedgeTokens,
    timers: BinaryHeap<Reverse<(Ns, u64, Timer)>>,
    timer_seq: u64,
    /// The earliest refill timer that is set.
    refill_at: Ns,
    batch_seq: u64,
    stats: Stats,
    /// Device time booked by answers and discards. With the time that jobs hold it is the total.
    settled: DeviceNs,
    /// Device time of lanes that are released.
    released: DeviceNs,
}

/// Counts since the start, for metrics and reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Jobs that arrived.
    pub arrived: u64,
    /// Jobs answered with scores.
    pub answered: u64,
    /// Jobs refused.
    pub refused: u64,
    /// Jobs cancelled by their client.
    pub cancelled: u64,
    /// Fallback runs started against a primary that might be late.
    pub hedges: u64,
    /// Hedges whose fallback answered.
    pub hedges_won: u64,
    /// Idle tiers that were tried although they were predicted to be late.
    pub tries: u64,
    /// Tries that were in time.
    pub tries_in_time: u64,
    /// Device time of batches that ended and whose scores nobody used, faults included.
    pub discarded: DeviceNs,
    /// Faults of lanes, out of memory included.
    pub faults: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// The last moment at which the fallback can still meet a job's budget.
    Hedge(JobId),
    /// A job's deadline minus the answer's margin.
    Deadline(JobId),
    /// A batch is past its stall bound.
    Stall(LaneId, BatchId),
    /// A lane's rest ends.
    Rested(LaneId),
    /// A lane with room behind a running batch may take the next one.
    Refill,
}

impl Scheduler {
    /// Builds a scheduler. Its lanes accept work after [`Event::LaneUp`].
    pub fn new(config: &Config) -> Self {
        assert!(!config.tenants.is_empty(), "there is at least the anonymous tenant");
        let mut scheduler = Self {
            limits: config.limits.clone(),
            now: Ns::ZERO,
            draining: false,
            jobs: HashMap::default(),
            pairs: 0,
            models: Slots::default(),
            retired: Vec::new(),
            lanes: Slots::default(),
            weights: config.tenants.iter().map(|tenant| tenant.weight).collect(),
            quotas: config.tenants.iter().map(|tenant| Quota::new(tenant.quota)).collect(),
            hedges: HedgeTokens::new(&config.limits),
            timers: BinaryHeap::new(),
            timer_seq: 0,
            refill_at: Ns::MAX,
            batch_seq: 0,
            stats: Stats::default(),
            settled: DeviceNs::ZERO,
            released: DeviceNs::ZERO,
        };
        for (model, seeds) in (0..).map(ModelId).zip(&config.seeds) {
            let lanes = (0..).map(LaneId).zip(config.lanes.iter().cloned());
            let lanes: Vec<_> = lanes.filter(|(_, lane)| lane.model == model).collect();
            // A model without a lane is not served.
            if !lanes.is_empty() {
                scheduler.add_model(model, seeds, lanes);
            }
        }
        scheduler
    }

    /// Handles an event and appends the actions that it causes, in order. Time never runs backwards here: an earlier
    /// `now` counts as the latest one.
    pub fn step(&mut self, now: Ns, event: Event, out: &mut Vec<Action>) {
        self.now = self.now.max(now);
        match event {
            Event::Arrive(arrivals) => arrivals.into_iter().for_each(|arrival| self.admit(arrival, out)),
            Event::Cancel { job } => self.cancel(job, out),
            Event::Done(done) => self.settle(&done, out),
            Event::Ranked { job, order } => self.choose_k(job, order, out),
            Event::LaneUp { lane } => {
                // A lane that was released meanwhile is unknown.
                let until = self.lanes.get_mut(lane).and_then(|lane| lane.loaded(self.now));
                if let Some(until) = until {
                    self.set_timer(until, Timer::Rested(lane));
                }
            }
            Event::ModelUp { model, seeds, lanes } => {
                let ids: Vec<LaneId> = lanes.iter().map(|&(lane, _)| lane).collect();
                self.add_model(model, &seeds, lanes);
                for lane in ids {
                    self.lanes[lane].loaded(self.now);
                }
            }
            Event::Retire { model } => self.retire(model),
            Event::Tick => {}
            Event::Drain => self.draining = true,
        }
        self.run_timers(out);
        self.fill_lanes(out);
        self.release_retired(out);
    }

    /// When the driver must send [`Event::Tick`] if no other event comes before.
    pub fn next_wake(&mut self) -> Option<Ns> {
        while let Some(&Reverse((at, _, timer))) = self.timers.peek() {
            if self.is_current(timer) {
                return Some(at);
            }
            self.timers.pop();
        }
        None
    }

    /// Jobs that are neither answered nor refused.
    pub fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Whether every job was answered or refused.
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Counts since the start.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    fn run_timers(&mut self, out: &mut Vec<Action>) {
        while let Some(&Reverse((at, _, timer))) = self.timers.peek() {
            if at > self.now {
                break;
            }
            self.timers.pop();
            match timer {
                Timer::Hedge(job) => self.hedge(job, out),
                Timer::Deadline(job) => self.deadline(job, out),
                Timer::Stall(lane, batch) => self.stalled(lane, batch, out),
                Timer::Rested(lane) => {
                    if let Some(lane) = self.lanes.get_mut(lane) {
                        lane.rested(self.now);
                    }
                }
                Timer::Refill => self.refill_at = Ns::MAX,
            }
        }
    }

    fn set_timer(&mut self, at: Ns, timer: Timer) {
        // Finished jobs leave timers behind, some for an hour. A rebuild removes them; its cost is amortised over the
        // timers set since the last one.
        if self.timers.len() > TIMERS_MIN + 8 * self.jobs.len() {
            let mut timers = std::mem::take(&mut self.timers);
            timers.retain(|&Reverse((_, _, timer))| self.is_current(timer));
            self.timers = timers;
        }
        self.timer_seq += 1;
        self.timers.push(Reverse((at, self.timer_seq, timer)));
    }

    /// Timers are not removed from the heap one by one; obsolete ones are skipped.
    fn is_current(&self, timer: Timer) -> bool {
        match timer {
            Timer::Hedge(job) => self.jobs.get(&job).is_some_and(|job| job.stage == Stage::Full),
            Timer::Deadline(job) => self.jobs.contains_key(&job),
            Timer::Stall(lane, batch) => {
                let lane = self.lanes.get(lane);
                lane.is_some_and(|lane| lane.running.iter().any(|running| running.id == batch))
            }
            Timer::Rested(lane) => self.lanes.get(lane).is_some(),
            Timer::Refill => true,
        }
    }

    /// Answers a job and removes it. Work that still runs for it will be discarded.
    fn answer(&mut self, id: JobId, served: Served, out: &mut Vec<Action>) {
        let mut job = self.forget(id);
        if job.is_hedged && served == Served::Fallback {
            self.stats.hedges_won += 1;
        }
        // An answer within the margin is not late.
        let margin = self.limits.answer_ns_margin;
        let is_late = job.deadline.is_some_and(|deadline| self.now > deadline.saturating_add(margin));
        if is_late {
            job.degraded = Some(Degradation::Late);
        }
        job.degraded = job.degraded.or(job.passed_over);
        self.settle_tries(&job, is_late);
        if job.batches > 0 {
            job.compute += self.now.saturating_sub(job.busy_since);
        }
        self.stats.answered += 1;
        self.settled += job.charged.total();
        let Job { degraded, charged, compute, line, .. } = job;
        let answer = Answer { served, degraded, charged, compute, line };
        out.push(Action::Answer { job: id, answer });
    }

    /// Refuses a job inside and removes it.
    fn refuse(&mut self, id: JobId, refusal: Refusal, out: &mut Vec<Action>) {
        let job = self.forget(id);
        self.stats.refused += 1;
        self.discard_charged(&job, out);
        out.push(Action::Refuse { job: id, refusal });
    }

    fn cancel(&mut self, id: JobId, out: &mut Vec<Action>) {
        if self.jobs.contains_key(&id) {
            let job = self.forget(id);
            self.stats.cancelled += 1;
            self.discard_charged(&job, out);
        }
    }

    fn discard_charged(&mut self, job: &Job, out: &mut Vec<Action>) {
        for (tier, on, device) in job.charged.iter() {
            let model = job.line[tier].expect("a tier that worked has a model");
            self.discard(Some(job.tenant), (tier, model, on), device, out);
        }
    }

    fn discard(
        &mut self,
        tenant: Option<TenantId>,
        (tier, model, on): (Tier, ModelId, DeviceId),
        device: DeviceNs,
        out: &mut Vec<Action>,
    ) {
        if device > DeviceNs::ZERO {
            self.settled += device;
            self.stats.discarded += device;
            out.push(Action::Discard { tenant, tier, model, on, device });
        }
    }

    fn forget(&mut self, id: JobId) -> Job {
        for tier in Tier::ALL {
            self.withdraw(id, tier);
        }
        let job = self.jobs.remove(&id).expect("a job that is answered or refused is inside");
        self.pairs -= u64::from(job.pairs);
        self.count_inside(job.line, |inside| *inside -= 1);
        job
    }

    fn job(&mut self, id: JobId) -> &mut Job {
        self.jobs.get_mut(&id).expect("a job that is decided on is inside")
    }
}

/// A hasher that keeps the order of job ids. Consecutive ids are neighbours in memory, which a queue of many thousands
/// needs. The map is never iterated where the order could show.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("job ids hash as one u64");
    }

    fn write_u64(&mut self, id: u64) {
        // The lower bits choose the slot, the upper seven distinguish entries in a group.
        self.0 = id ^ (id << 57);
    }
}
