//! Invariants of the scheduler's state. The simulation asserts them after every step.

use super::stage::Stage;
use super::{LaneId, Scheduler};
use crate::base::{DeviceNs, Ns, Tier};
use std::collections::BTreeMap;

impl Scheduler {
    /// Asserts the bounds, and that no lane is idle while there is eligible work.
    fn check_bounds(&self) {
        assert!(self.jobs.len() <= self.limits.jobs_max, "jobs stay within their bound");
        assert!(self.pairs <= self.limits.pairs_max, "pairs stay within their bound");
        assert!(!self.idles(), "no lane idles beside eligible work");
        for lane in &self.lanes {
            for batch in &lane.running {
                let fits = batch.load.tokens <= batch.tokens_max || batch.load.pairs == 1;
                assert!(fits, "no batch exceeds its lane");
            }
        }
    }

    /// Asserts that all sums agree; linear in the jobs inside.
    pub fn check(&self) {
        self.check_bounds();
        let mut queued: BTreeMap<Tier, (usize, u64, Ns)> = BTreeMap::new();
        let mut running: BTreeMap<_, u32> = BTreeMap::new();
        let mut held = DeviceNs::ZERO;
        for job in self.jobs.values() {
            held += job.charged.total();
            let mut waits =
                job.stage == Stage::Ranking || (job.stage == Stage::Hedged && job.has_fallback_scores());
            for tier in Tier::ALL {
                let part = &job.parts[tier];
                let todo: u32 = part.todo.iter().map(|range| range.end - range.start).sum();
                assert_eq!(part.queued.is_some(), todo > 0, "a part is in line while it has work");
                assert!(part.done_pairs() + part.running + todo <= part.pairs, "no pair runs twice");
                if part.queued.is_some() {
                    let sums = queued.entry(tier).or_default();
                    *sums = (sums.0 + 1, sums.1 + part.tokens, sums.2 + part.work);
                }
                if part.running > 0 {
                    running.insert((job.id, tier), part.running);
                }
                waits |= part.queued.is_some() || part.running > 0;
            }
            assert!(waits, "a job that is inside waits for something: {job:?}");
        }
        for tier in Tier::ALL {
            let queue = &self.queues[tier];
            let (jobs, tokens, work) = queued.get(&tier).copied().unwrap_or_default();
            assert_eq!((queue.jobs(), queue.tokens(), queue.work()), (jobs, tokens, work), "{tier:?}");
        }
        for lane in &self.lanes {
            for member in lane.running.iter().flat_map(|batch| &batch.members) {
                if let Some(count) = running.get_mut(&(member.slice.job, lane.tier)) {
                    *count -= member.slice.range.end - member.slice.range.start;
                }
            }
        }
        assert!(running.values().all(|&count| count == 0), "what runs is on some lane");
        let busy: DeviceNs = self.lanes.iter().map(|lane| lane.busy).sum();
        assert_eq!(self.settled + held, busy, "every device nanosecond is charged exactly once");
    }

    /// Device time of all batches that a lane has finished.
    pub fn busy(&self, lane: LaneId) -> DeviceNs {
        self.lanes[lane.0 as usize].busy
    }
}
