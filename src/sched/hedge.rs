//! Lateness: who will miss the budget, and what answers instead.
//!
//! The fallback starts at the last moment at which it still meets the budget. What the primary
//! has not begun by then is withdrawn, which costs nothing; what it has begun is raced, and such
//! races are capped by a token bucket (Dean and Barroso, "The Tail at Scale").

use super::config::Limits;
use super::event::{Action, JobId};
use super::stage::Stage;
use super::{Scheduler, Timer};
use crate::base::{Ns, Tier};
use crate::forecast::predict::Load;
use crate::rerank::Degradation;

/// Races that may be started.
#[derive(Debug)]
pub(super) struct HedgeTokens {
    thousandths: u64,
    earned: u64,
    saved_max: u64,
}

impl HedgeTokens {
    pub fn new(limits: &Limits) -> Self {
        let saved_max = u64::from(limits.hedges_burst) * 1000;
        Self { thousandths: saved_max, earned: u64::from(limits.hedges_permille), saved_max }
    }

    /// Call once for each arrival.
    pub fn earn(&mut self) {
        self.thousandths = (self.thousandths + self.earned).min(self.saved_max);
    }

    fn spend(&mut self) -> bool {
        let enough = self.thousandths >= 1000;
        if enough {
            self.thousandths -= 1000;
        }
        enough
    }
}

impl Scheduler {
    /// Sets the moment at which the fallback has to start if the primary is not through.
    pub(super) fn arm_hedge(&mut self, id: JobId) {
        let job = &self.jobs[&id];
        let Some(deadline) = job.deadline else { return };
        if !self.may_fall_back(id) {
            return;
        }
        let load = Load::of(job.lengths.fallback.iter().copied());
        let takes = self.finish(Tier::Fallback, job.tenant, job.due, &load).saturating_sub(self.now);
        // A busy lane may have just begun a batch when the moment comes.
        let reserve = takes.saturating_add(self.limits.batch_ns_max);
        let at = deadline.saturating_sub(reserve).max(self.now.saturating_add(Ns(1)));
        self.set_timer(at, Timer::Hedge(id));
    }

    /// The last moment for the fallback has come.
    pub(super) fn hedge(&mut self, id: JobId, out: &mut Vec<Action>) {
        let Some(job) = self.jobs.get(&id) else { return };
        if job.stage != Stage::Full || !self.may_fall_back(id) {
            return;
        }
        let deadline = job.deadline.unwrap_or(Ns::MAX);
        let ends = self.primary_ends(id);
        if ends <= deadline {
            // Trusted, and looked at once more when that should have come true.
            self.set_timer(ends.max(self.now.saturating_add(Ns(1))), Timer::Hedge(id));
            return;
        }
        let job = &self.jobs[&id];
        if job.parts.primary.running == 0 {
            self.fall_back(id, Degradation::PrimaryLate, out);
        } else if self.hedges.spend() {
            self.stats.hedges += 1;
            self.job(id).degraded = None;
            self.start(id, Stage::Hedged);
        }
    }

    /// When the primary is predicted, with margin, to be through with a job that it has.
    fn primary_ends(&self, id: JobId) -> Ns {
        let job = &self.jobs[&id];
        let part = &job.parts.primary;
        let running = (self.lanes_of(Tier::Primary).flat_map(|lane| &lane.running))
            .filter(|batch| batch.members.iter().any(|member| member.slice.job == id))
            // One that is overdue already says nothing about when it will end.
            .map(|batch| if batch.ends_p99 <= self.now { Ns::MAX } else { batch.ends_p99 })
            .max()
            .unwrap_or(Ns::ZERO);
        if part.todo.is_empty() {
            return running;
        }
        let rest = part.todo.iter().cloned().flatten().map(|place| job.length(Tier::Primary, place));
        // Its own queued work is counted among what is ahead of it; that errs towards late by
        // at most itself, so it is taken off again.
        let finish = self.finish(Tier::Primary, job.tenant, job.due, &Load::of(rest));
        running.max(finish.saturating_sub(part.work))
    }

    /// Before a batch that starts then and has this load takes a job: true when the job cannot
    /// make it any more and was taken out of the line.
    pub(super) fn give_up_late(
        &mut self,
        id: JobId,
        tier: Tier,
        (starts, before): (Ns, Load),
        out: &mut Vec<Action>,
    ) -> bool {
        let job = &self.jobs[&id];
        let Some(deadline) = job.deadline else { return false };
        let part = &job.parts[tier];
        let mut load = before;
        part.todo.iter().cloned().flatten().for_each(|place| load.add(job.length(tier, place)));
        if starts.saturating_add(self.predictors[tier].p99(&load)) <= deadline {
            return false;
        }
        let is_certain = starts.saturating_add(part.work) > deadline;
        self.predicted_late(id, tier, is_certain, starts, out)
    }
}
