//! Baselines: the batchers of servers that do not know deadlines. They have one bounded queue in order of arrival, and
//! the primary only.

use super::Machine;
use super::scenario::Scenario;
use crate::base::{DeviceId, DeviceNs, Ns, PerTier, Tier, Used};
use crate::rerank::{Degradation, Refusal, Served};
use crate::sched::{Action, Answer, Arrival, BatchId, Dispatch, Event, JobId, LaneId, Slice};
use std::collections::{BTreeMap, VecDeque};

/// The order in which a baseline takes waiting requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discipline {
    /// In order of arrival.
    Fifo,
    /// Processor sharing: a batch takes one pair of each waiting request in turn.
    Sharing,
    /// The shortest remaining processing time first.
    Shortest,
}

/// A batcher with a fixed window: a batch that is not full waits this long for more requests. With a window of zero an idle
/// lane starts at once, as in text-embeddings-inference; Triton's and Ray Serve's batchers have longer windows.
#[derive(Debug)]
pub struct Window {
    window: Ns,
    /// Whether requests whose deadline has passed are dropped when their turn comes.
    drop_expired: bool,
    jobs_max: usize,
    discipline: Discipline,
    lanes: Vec<(LaneId, u64, Option<BatchId>)>,
    /// The device of each lane of the scenario.
    devices: Vec<DeviceId>,
    queue: VecDeque<JobId>,
    jobs: BTreeMap<JobId, Waiting>,
    running: BTreeMap<BatchId, Vec<Slice>>,
    batches: u64,
}

#[derive(Debug)]
struct Waiting {
    arrival: Arrival,
    queued: Ns,
    next: u32,
    done: u32,
    charged: Used,
}

impl Window {
    /// A FIFO baseline for a scenario. It holds at most 512 jobs, as text-embeddings-inference does.
    pub fn new(scenario: &Scenario, window: Ns, drop_expired: bool) -> Self {
        let lanes = (scenario.devices.iter().enumerate())
            .filter(|(_, device)| device.tier == Tier::Primary)
            .map(|(index, device)| (LaneId(index as u32), device.batch_tokens_max, None))
            .collect();
        Self {
            window,
            drop_expired,
            jobs_max: 512,
            discipline: Discipline::Fifo,
            lanes,
            devices: (0..scenario.devices.len()).map(|lane| scenario.device_of(lane)).collect(),
            queue: VecDeque::new(),
            jobs: BTreeMap::new(),
            running: BTreeMap::new(),
            batches: 0,
        }
    }

    /// A baseline of another discipline, without a window and without a bound on its queue.
    pub fn unbounded(scenario: &Scenario, discipline: Discipline) -> Self {
        Self { discipline, jobs_max: usize::MAX, ..Self::new(scenario, Ns::ZERO, false) }
    }

    fn finish(&mut self, now: Ns, (lane, batch): (LaneId, BatchId), device: DeviceNs, out: &mut Vec<Action>) {
        let (tier, on) = (Tier::Primary, self.devices[lane.0 as usize]);
        let slices = self.running.remove(&batch).unwrap_or_default();
        let pairs: u64 = slices.iter().map(|slice| slice.range.len() as u64).sum();
        let mut rest = device.0;
        for (index, slice) in slices.iter().enumerate() {
            let share = match index + 1 == slices.len() {
                true => rest,
                false => device.0 * slice.range.len() as u64 / pairs,
            };
            rest -= share;
            let Some(job) = self.jobs.get_mut(&slice.job) else {
                let (tenant, model, device) = (None, Scenario::model(tier), DeviceNs(share));
                out.push(Action::Discard { tenant, tier, model, on, device });
                continue;
            };
            job.charged.add(tier, on, DeviceNs(share));
            job.done += slice.range.len() as u32;
            if job.done == job.arrival.pairs {
                let job = self.jobs.remove(&slice.job).expect("the job was just seen");
                let late = job.arrival.deadline.is_some_and(|deadline| now > deadline);
                let degraded = late.then_some(Degradation::Late);
                let (served, charged, compute) = (Served::Full, job.charged, Ns::ZERO);
                let line = PerTier { primary: Some(Scenario::model(tier)), fallback: None };
                let answer = Answer { served, degraded, charged, compute, line };
                out.push(Action::Answer { job: slice.job, answer });
            }
        }
    }

    fn fill(&mut self, now: Ns, out: &mut Vec<Action>) {
        for index in 0..self.lanes.len() {
            let (lane, tokens_max, None) = self.lanes[index] else { continue };
            self.forget_expired(now, out);
            let Some(first) = self.queue.front().map(|job| self.jobs[job].queued) else { return };
            let tokens: u64 = self.queue.iter().map(|job| self.jobs[job].tokens_left()).sum();
            if tokens < tokens_max && now < first.saturating_add(self.window) {
                return;
            }
            let slices = match self.discipline {
                Discipline::Sharing => self.share(tokens_max),
                Discipline::Fifo | Discipline::Shortest => self.in_turn(tokens_max),
            };
            self.batches += 1;
            let batch = BatchId(self.batches);
            self.lanes[index].2 = Some(batch);
            self.running.insert(batch, slices.clone());
            out.push(Action::Dispatch(Dispatch { lane, batch, slices }));
        }
    }

    /// Takes whole requests in order; the last one is cut when the batch is full.
    fn in_turn(&mut self, tokens_max: u64) -> Vec<Slice> {
        if self.discipline == Discipline::Shortest {
            let jobs = &self.jobs;
            self.queue.make_contiguous().sort_by_key(|job| jobs[job].tokens_left());
        }
        let (mut slices, mut tokens) = (Vec::new(), 0);
        while let Some(&id) = self.queue.front() {
            let job = self.jobs.get_mut(&id).expect("a queued job is known");
            let start = job.next;
            while job.take_one(&mut tokens, tokens_max) {}
            if job.next > start {
                slices.push(Slice { job: id, range: start..job.next, order: None });
            }
            if job.tokens_left() > 0 {
                break;
            }
            self.queue.pop_front();
        }
        slices
    }

    /// Takes one pair of each request in turn until the batch is full. The next batch continues with the next request.
    fn share(&mut self, tokens_max: u64) -> Vec<Slice> {
        let mut slices: BTreeMap<JobId, Slice> = BTreeMap::new();
        let mut tokens = 0;
        while let Some(&id) = self.queue.front() {
            let job = self.jobs.get_mut(&id).expect("a queued job is known");
            let start = job.next;
            if !job.take_one(&mut tokens, tokens_max) {
                break;
            }
            let slice = slices.entry(id).or_insert(Slice { job: id, range: start..start, order: None });
            slice.range.end = job.next;
            self.queue.pop_front();
            if job.tokens_left() > 0 {
                self.queue.push_back(id);
            }
        }
        slices.into_values().collect()
    }

    fn forget_expired(&mut self, now: Ns, out: &mut Vec<Action>) {
        if !self.drop_expired {
            return;
        }
        while let Some(&id) = self.queue.front() {
            let job = &self.jobs[&id];
            let needed = now.saturating_sub(job.arrival.arrived);
            let expired = job.arrival.deadline.is_some_and(|deadline| deadline <= now);
            if !expired || job.next > 0 {
                return;
            }
            self.queue.pop_front();
            self.jobs.remove(&id);
            out.push(Action::Refuse { job: id, refusal: Refusal::BudgetSpent { needed } });
        }
    }
}

impl Waiting {
    /// Tokens of each pair; baselines have a primary only.
    fn lengths(&self) -> &[u32] {
        &self.arrival.primaries[0].lengths
    }

    /// Moves the next pair into a batch of `tokens` if it fits or the batch is empty. Returns whether it did.
    fn take_one(&mut self, tokens: &mut u64, tokens_max: u64) -> bool {
        let Some(&length) = self.lengths().get(self.next as usize) else { return false };
        let fits = *tokens == 0 || *tokens + u64::from(length) <= tokens_max;
        if fits {
            *tokens += u64::from(length);
            self.next += 1;
        }
        fits
    }

    fn tokens_left(&self) -> u64 {
        self.lengths()[self.next as usize..].iter().map(|&length| u64::from(length)).sum()
    }
}

impl Machine for Window {
    fn step(&mut self, now: Ns, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Arrive(arrivals) => {
                for arrival in arrivals {
                    if self.jobs.len() >= self.jobs_max {
                        let refusal = Refusal::Overloaded { retry_after: Ns::from_millis(1) };
                        out.push(Action::Refuse { job: arrival.job, refusal });
                        continue;
                    }
                    self.queue.push_back(arrival.job);
                    let waiting =
                        Waiting { arrival, queued: now, next: 0, done: 0, charged: Used::default() };
                    self.jobs.insert(waiting.arrival.job, waiting);
                }
            }
            Event::Cancel { job } => {
                // A running batch is not stopped; its device time is discarded.
                if self.queue.contains(&job) {
                    self.queue.retain(|&queued| queued != job);
                }
                let charged = self.jobs.remove(&job).map(|job| job.charged).unwrap_or_default();
                let discard = |(tier, on, device)| {
                    let (tenant, model) = (None, Scenario::model(tier));
                    Action::Discard { tenant, tier, model, on, device }
                };
                out.extend(charged.iter().map(discard));
            }
            Event::Done(done) => {
                if let Some(lane) = self.lanes.iter_mut().find(|(lane, ..)| *lane == done.lane) {
                    lane.2 = None;
                }
                self.finish(now, (done.lane, done.batch), done.device, out);
            }
            Event::Ranked { .. }
            | Event::LaneUp { .. }
            | Event::ModelUp { .. }
            | Event::Retire { .. }
            | Event::Tick
            | Event::Drain => {}
        }
        self.fill(now, out);
    }

    fn next_wake(&mut self) -> Option<Ns> {
        let idle = self.lanes.iter().any(|(_, _, batch)| batch.is_none());
        let first = self.queue.front().map(|job| self.jobs[job].queued.saturating_add(self.window));
        first.filter(|_| idle)
    }

    fn check(&self) {}
}
