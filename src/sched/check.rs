//! Invariants of the scheduler's state. The simulation asserts them after every step.

use super::job::Job;
use super::lane::{Health, Lane};
use super::model::Model;
use super::stage::Stage;
use super::{LaneId, Scheduler};
use crate::base::{DeviceNs, ModelId, Ns, Tier};
use crate::forecast::predict::Load;
use std::collections::BTreeMap;

impl Scheduler {
    /// Asserts the bounds, and that no lane is idle while there is eligible work.
    fn check_bounds(&self) {
        assert!(self.jobs.len() <= self.limits.jobs_max, "jobs stay within their bound");
        assert!(self.pairs <= self.limits.pairs_max, "pairs stay within their bound");
        assert!(!self.idles(), "no lane idles beside eligible work");
        self.hedges.check();
        self.lanes.values().for_each(Lane::check);
    }

    /// Asserts that all sums agree; linear in the jobs inside.
    pub fn check(&self) {
        self.check_bounds();
        let mut queued: BTreeMap<ModelId, (usize, u64, Ns)> = BTreeMap::new();
        // Pairs in running batches by job and model, and members of running batches by job.
        let mut running: BTreeMap<_, u32> = BTreeMap::new();
        let mut members: BTreeMap<_, u32> = BTreeMap::new();
        for lane in self.lanes.values() {
            for member in lane.running.iter().flat_map(|batch| &batch.members) {
                let slice = &member.slice;
                *running.entry((slice.job, lane.model)).or_default() += slice.range.end - slice.range.start;
                *members.entry(slice.job).or_default() += 1;
                let job = self.jobs.get(&slice.job);
                let is_its_own = job.is_none_or(|job| job.line[member.tier] == Some(lane.model));
                assert!(is_its_own, "a job's scores in a tier are of one model");
            }
        }
        let (mut held, mut pairs) = (DeviceNs::ZERO, 0);
        let mut inside: BTreeMap<ModelId, usize> = BTreeMap::new();
        for job in self.jobs.values() {
            held += job.charged.total();
            pairs += u64::from(job.pairs);
            job.check();
            assert_eq!(job.batches, members.get(&job.id).copied().unwrap_or(0), "a job counts its batches");
            assert!(job.line.primary != job.line.fallback, "two tiers of a job are two models");
            for tier in Tier::ALL {
                let part = &job.parts[tier];
                let Some(model) = job.line[tier] else {
                    assert!(part.running == 0 && part.queued.is_none(), "a tier without a model has no work");
                    continue;
                };
                *inside.entry(model).or_default() += 1;
                let runs = running.get(&(job.id, model)).copied().unwrap_or(0);
                assert_eq!(part.running, runs, "the pairs that run are on lanes of their model");
                if part.queued.is_some() {
                    let sums = queued.entry(model).or_default();
                    *sums = (sums.0 + 1, sums.1 + part.tokens, sums.2 + part.work);
                }
            }
        }
        assert_eq!(self.pairs, pairs, "the pairs inside are those of the jobs inside");
        for model in self.models.ids() {
            let Model { queue, lanes, inside: count, .. } = &self.models[model];
            assert_eq!(inside.get(&model).copied().unwrap_or(0), *count, "a model counts its jobs");
            assert!(!lanes.is_empty(), "no queue outlives its lanes");
            assert!(lanes.iter().all(|&lane| self.lanes[lane].model == model), "a model's lanes are its own");
            let (jobs, tokens, work) = queued.get(&model).copied().unwrap_or_default();
            assert_eq!((queue.jobs(), queue.tokens(), queue.work()), (jobs, tokens, work), "{model:?}");
            queue.check();
        }
        let lanes: usize = self.models.values().map(|model| model.lanes.len()).sum();
        assert_eq!(lanes, self.lanes.len(), "every lane has its model");
        let busy: DeviceNs = self.lanes.values().map(|lane| lane.busy).sum();
        let busy = busy + self.released;
        assert_eq!(self.settled + held, busy, "every device nanosecond is charged exactly once");
    }

    /// Device time of all batches that a lane has finished.
    pub fn busy(&self, lane: LaneId) -> DeviceNs {
        self.lanes[lane].busy
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
