//! Invariants of the scheduler's state. The simulation asserts them after every step.

use super::job::Job;
use super::lane::{Health, Lane};
use super::stage::Stage;
use super::{LaneId, Scheduler};
use crate::base::{DeviceNs, Ns, Tier};
use crate::forecast::predict::Load;
use std::collections::BTreeMap;

impl Scheduler {
    /// Asserts the bounds, and that no lane is idle while there is eligible work.
    fn check_bounds(&self) {
        assert!(self.jobs.len() <= self.limits.jobs_max, "jobs stay within their bound");
        assert!(self.pairs <= self.limits.pairs_max, "pairs stay within their bound");
        assert!(!self.idles(), "no lane idles beside eligible work");
        self.hedges.check();
        self.lanes.iter().for_each(Lane::check);
    }

    /// Asserts that all sums agree; linear in the jobs inside.
    pub fn check(&self) {
        self.check_bounds();
        let mut queued: BTreeMap<Tier, (usize, u64, Ns)> = BTreeMap::new();
        // Pairs in running batches by job and tier, and members of running batches by job.
        let mut running: BTreeMap<_, u32> = BTreeMap::new();
        let mut members: BTreeMap<_, u32> = BTreeMap::new();
        for lane in &self.lanes {
            for member in lane.running.iter().flat_map(|batch| &batch.members) {
                let slice = &member.slice;
                *running.entry((slice.job, lane.tier)).or_default() += slice.range.end - slice.range.start;
                *members.entry(slice.job).or_default() += 1;
            }
        }
        let (mut held, mut pairs) = (DeviceNs::ZERO, 0);
        for job in self.jobs.values() {
            held += job.charged.total();
            pairs += u64::from(job.pairs());
            job.check();
            assert_eq!(job.batches, members.get(&job.id).copied().unwrap_or(0), "a job counts its batches");
            for tier in Tier::ALL {
                let part = &job.parts[tier];
                let runs = running.get(&(job.id, tier)).copied().unwrap_or(0);
                assert_eq!(part.running, runs, "the pairs that run are on lanes of their tier");
                if part.queued.is_some() {
                    let sums = queued.entry(tier).or_default();
                    *sums = (sums.0 + 1, sums.1 + part.tokens, sums.2 + part.work);
                }
            }
        }
        assert_eq!(self.pairs, pairs, "the pairs inside are those of the jobs inside");
        for tier in Tier::ALL {
            let queue = &self.queues[tier];
            let (jobs, tokens, work) = queued.get(&tier).copied().unwrap_or_default();
            assert_eq!((queue.jobs(), queue.tokens(), queue.work()), (jobs, tokens, work), "{tier:?}");
            queue.check();
        }
        let busy: DeviceNs = self.lanes.iter().map(|lane| lane.busy).sum();
        assert_eq!(self.settled + held, busy, "every device nanosecond is charged exactly once");
    }

    /// Device time of all batches that a lane has finished.
    pub fn busy(&self, lane: LaneId) -> DeviceNs {
        self.lanes[lane.0 as usize].busy
    }
}

impl Job {
    fn check(&self) {
        let mut waits =
            self.stage == Stage::Ranking || (self.stage == Stage::Hedged && self.has_fallback_scores());
        for tier in Tier::ALL {
            let part = &self.parts[tier];
            let todo: u32 = part.todo.iter().map(|range| range.end - range.start).sum();
            let mut load = Load::default();
            if todo > 0 {
                self.add_waiting(tier, &mut load);
            }
            assert_eq!(part.queued.is_some(), todo > 0, "a part is in the queue while it has work");
            assert_eq!(part.tokens, load.tokens, "the tokens of a part are those of its waiting pairs");
            assert!(part.done_pairs() + part.running + todo <= part.pairs, "no pair runs twice");
            assert!(todo == 0 || self.stage.works(tier), "a tier is asked for what the stage waits for");
            waits |= self.stage.works(tier) && (todo > 0 || part.running > 0);
        }
        assert!(waits, "a job that is inside waits for something: {self:?}");
    }
}

impl Lane {
    fn check(&self) {
        let most = match self.health {
            Health::Up => usize::MAX,
            Health::Probing => 1,
            Health::Loading { .. } | Health::Resting { .. } => 0,
        };
        assert!(self.running.len() <= most.min(self.config().depth.max(1)), "no lane holds too many batches");
        assert!(
            (1..=self.config().batch_tokens_max).contains(&self.tokens_max),
            "a lane's bound is in range"
        );
        for batch in &self.running {
            let fits = batch.load.tokens <= batch.tokens_max || batch.load.pairs == 1;
            assert!(fits, "no batch exceeds its lane");
        }
    }
}
