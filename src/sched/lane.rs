//! The scheduler's view of a lane: its running batches, and a circuit breaker for faults.

use super::config::{LaneConfig, Limits};
use super::event::{BatchId, Slice};
use crate::base::{DeviceId, DeviceNs, ModelId, Ns, TenantId, Tier};
use crate::forecast::predict::Load;
use std::collections::VecDeque;

/// One lane.
#[derive(Debug)]
pub(super) struct Lane {
    pub model: ModelId,
    pub on: DeviceId,
    pub running: VecDeque<Batch>,
    pub health: Health,
    /// Most tokens of a batch at present: halved after out-of-memory, raised again in steps.
    pub tokens_max: u64,
    /// Device time of all batches that it finished.
    pub busy: DeviceNs,
    config: LaneConfig,
    /// Faults since it last finished a batch.
    faults: u32,
}

/// A dispatched batch.
#[derive(Debug)]
pub(super) struct Batch {
    pub id: BatchId,
    pub members: Vec<Member>,
    pub load: Load,
    /// The bound on its tokens under which it was built; the lane's may have been halved since.
    pub tokens_max: u64,
    /// When it is predicted to end: the mean, and with margin.
    pub ends: Ns,
    pub ends_p99: Ns,
    /// How long it may work before it is given up.
    pub stall_bound: Ns,
}

impl Batch {
    /// What the model is to the first of its jobs: the tier of time that the house pays for.
    pub fn tier(&self) -> Tier {
        self.members.first().map_or(Tier::Primary, |member| member.tier)
    }
}

/// Pairs of one job in a batch.
#[derive(Debug)]
pub(super) struct Member {
    pub slice: Slice,
    pub tenant: TenantId,
    /// What the lane's model is to the job.
    pub tier: Tier,
    /// Predicted device time: its weight when the measured time is divided.
    pub work: Ns,
}

/// The circuit breaker (Nygard, "Release It!"): closed, open, half open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    /// The scorer is being made; a rest may follow.
    Loading { rest_until: Ns },
    /// The scorer is made, and rests.
    Resting { until: Ns },
    /// One batch is let through as a probe.
    Probing,
    /// It works normally.
    Up,
}

impl Lane {
    pub fn new(config: LaneConfig) -> Self {
        Self {
            model: config.model,
            on: config.on,
            running: VecDeque::new(),
            health: Health::Loading { rest_until: Ns::ZERO },
            tokens_max: config.batch_tokens_max,
            busy: DeviceNs::ZERO,
            config,
            faults: 0,
        }
    }

    pub fn config(&self) -> &LaneConfig {
        &self.config
    }

    /// Whether another batch may be dispatched.
    pub fn has_room(&self) -> bool {
        match self.health {
            Health::Up => self.running.len() < self.config.depth.max(1),
            Health::Probing => self.running.is_empty(),
            Health::Loading { .. } | Health::Resting { .. } => false,
        }
    }

    /// When it is predicted to start the next batch.
    pub fn free_at(&self, now: Ns) -> Ns {
        self.running.back().map_or(now, |batch| batch.ends.max(now))
    }

    /// The scorer is made. Returns the end of the rest, if there is one.
    pub fn loaded(&mut self, now: Ns) -> Option<Ns> {
        let Health::Loading { rest_until } = self.health else { return None };
        if self.faults == 0 {
            self.health = Health::Up;
            return None;
        }
        let until = rest_until.max(now);
        self.health = Health::Resting { until };
        Some(until)
    }

    /// Ends the rest if it is over.
    pub fn rested(&mut self, now: Ns) {
        if matches!(self.health, Health::Resting { until } if until <= now) {
            self.health = Health::Probing;
        }
    }

    /// A batch succeeded.
    pub fn succeeded(&mut self, batch: &Batch) {
        self.health = Health::Up;
        self.faults = 0;
        if batch.load.tokens * 2 > self.tokens_max {
            let step = (self.config.batch_tokens_max / 256).max(1);
            self.tokens_max = (self.tokens_max + step).min(self.config.batch_tokens_max);
        }
    }

    /// A batch of this many tokens ran out of memory. One that was built before the bound was halved does not raise it.
    pub fn out_of_memory(&mut self, tokens: u64) {
        self.tokens_max = self.tokens_max.min((tokens / 2).max(1));
    }

    /// The lane must be restarted.
    pub fn failed(&mut self, now: Ns, limits: &Limits) {
        let rest = limits.rest_ns_min.0.saturating_mul(1 << self.faults.min(30));
        self.faults += 1;
        self.health = Health::Loading { rest_until: now.saturating_add(Ns(rest.min(limits.rest_ns_max.0))) };
    }

    /// Removes the oldest batch if it has this id.
    pub fn finish(&mut self, id: BatchId) -> Option<Batch> {
        if self.running.front()?.id != id {
            return None;
        }
        self.running.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(depth: usize) -> Lane {
        let mut lane =
            Lane::new(LaneConfig { model: ModelId(0), on: DeviceId(0), batch_tokens_max: 1_024, depth });
        assert_eq!((lane.has_room(), lane.loaded(Ns::ZERO), lane.health), (false, None, Health::Up));
        lane
    }

    fn batch(id: u64, tokens: u32, ends: u64) -> Batch {
        let load = Load::of([tokens]);
        let ends = Ns(ends);
        Batch {
            id: BatchId(id),
            members: Vec::new(),
            load,
            tokens_max: 1_024,
            ends,
            ends_p99: ends,
            stall_bound: Ns::MAX,
        }
    }

    #[test]
    fn a_lane_holds_as_many_batches_as_its_depth_and_is_free_after_the_last() {
        for (depth, room) in [(0, 1), (1, 1), (2, 2)] {
            let mut lane = lane(depth);
            let mut held = 0;
            while lane.has_room() {
                held += 1;
                lane.running.push_back(batch(held, 1, 10 * held));
            }
            assert_eq!(held, room);
            assert_eq!((lane.free_at(Ns(5)), lane.free_at(Ns(99))), (Ns(10 * held), Ns(99)));
            assert!(lane.finish(BatchId(7)).is_none() && lane.finish(BatchId(1)).is_some());
        }
    }

    #[test]
    fn a_rest_doubles_with_each_fault_up_to_its_limit_and_ends_with_one_probe() {
        let limits = Limits { rest_ns_min: Ns(100), rest_ns_max: Ns(1_000), ..Limits::default() };
        let mut lane = lane(2);
        for (fault, rest) in [100, 200, 400, 800].into_iter().chain([1_000; 80]).enumerate() {
            let now = Ns(10_000 * fault as u64);
            lane.failed(now, &limits);
            assert_eq!(lane.loaded(now), Some(now + Ns(rest)), "fault {fault}");
            lane.rested(now + Ns(rest - 1));
            assert!(!lane.has_room());
            lane.rested(now + Ns(rest));
            assert_eq!((lane.health, lane.has_room()), (Health::Probing, true));
            lane.running.push_back(batch(1, 1, 0));
            assert!(!lane.has_room(), "one batch is the probe");
            lane.running.clear();
        }
        // A scorer that took longer to load than the rest does not rest.
        lane.failed(Ns(0), &limits);
        assert_eq!(lane.loaded(Ns(5_000)), Some(Ns(5_000)));
        lane.succeeded(&batch(1, 1, 0));
        lane.failed(Ns(0), &limits);
        assert_eq!(lane.loaded(Ns(0)), Some(Ns(100)), "a success forgets the faults");
    }

    #[test]
    fn the_bound_is_halved_below_the_batch_that_failed_and_raised_by_batches_that_use_it() {
        let mut lane = lane(1);
        lane.out_of_memory(601);
        assert_eq!(lane.tokens_max, 300);
        lane.out_of_memory(900);
        assert_eq!(lane.tokens_max, 300, "a batch built before does not raise it");
        lane.succeeded(&batch(1, 150, 0));
        assert_eq!(lane.tokens_max, 300, "half of the bound shows nothing");
        lane.succeeded(&batch(1, 151, 0));
        assert_eq!(lane.tokens_max, 304);
        (0..1_000).for_each(|_| lane.succeeded(&batch(1, 1_024, 0)));
        assert_eq!(lane.tokens_max, 1_024);
        lane.out_of_memory(1);
        assert_eq!(lane.tokens_max, 1);
        // A small bound grows too.
        lane.config.batch_tokens_max = 100;
        lane.succeeded(&batch(1, 1, 0));
        assert_eq!(lane.tokens_max, 2);
    }
}
