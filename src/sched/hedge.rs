//! Lateness: which jobs are predicted to miss their deadline, and what is done about it.
//!
//! The fallback starts at the last moment at which it still meets the deadline. If the primary has not begun the job by
//! then, the job moves to the fallback, which costs nothing. If the primary has begun it, both tiers work on it; the number
//! of such hedges is bounded by a token bucket (Dean and Barroso, "The Tail at Scale").
//!
//! An idle tier is tried on a job that it is predicted to finish too late, if the prediction is in doubt. Otherwise a
//! pessimistic predictor would never be corrected. At the deadline such a job is answered with the scores that exist, or
//! refused if there are none. A try takes a token of the same bucket and returns it if it was in time. So wrong
//! predictions are corrected by every request, and the wasted device time is bounded.

use super::config::Limits;
use super::event::{Action, JobId};
use super::job::Job;
use super::lane::Health;
use super::stage::Stage;
use super::{Scheduler, Timer};
use crate::base::{Ns, Tier};
use crate::forecast::predict::Load;
use crate::rerank::Degradation;

/// Hedges and tries that may be started.
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

    /// Called for each arrival.
    pub fn earn(&mut self) {
        self.thousandths = (self.thousandths + self.earned).min(self.saved_max);
    }

    /// Returns the token of a try that was in time.
    pub fn give_back(&mut self) {
        self.thousandths = (self.thousandths + 1000).min(self.saved_max);
    }

    pub fn check(&self) {
        assert!(self.thousandths <= self.saved_max, "saved tokens stay within their bound");
    }

    /// Takes a token. Returns false if there is none.
    pub fn spend(&mut self) -> bool {
        let Some(rest) = self.thousandths.checked_sub(1000) else { return false };
        self.thousandths = rest;
        true
    }
}

impl Scheduler {
    /// Sets a timer for the moment at which the fallback must start if the primary has not finished.
    pub(super) fn arm_hedge(&mut self, id: JobId) {
        let job = &self.jobs[&id];
        let Some(deadline) = job.deadline else { return };
        if !self.may_fall_back(id) {
            return;
        }
        let finish = self.finish(Tier::Fallback, job.tenant, job.due, &job.loads.fallback);
        let takes = finish.saturating_sub(self.now);
        // A busy lane may have just begun a batch at that moment.
        let reserve = takes.saturating_add(self.limits.batch_ns_max);
        let at = deadline.saturating_sub(reserve).max(self.now.saturating_add(Ns(1)));
        self.set_timer(at, Timer::Hedge(id));
    }

    /// Called at the last moment for the fallback.
    pub(super) fn hedge(&mut self, id: JobId, out: &mut Vec<Action>) {
        let Some(job) = self.jobs.get(&id) else { return };
        if job.stage != Stage::Full || !self.may_fall_back(id) {
            return;
        }
        let deadline = job.deadline.unwrap_or(Ns::MAX);
        let ends = self.primary_ends(id);
        if ends <= deadline {
            // Trusts the prediction, and checks again at the predicted end.
            self.set_timer(ends.max(self.now.saturating_add(Ns(1))), Timer::Hedge(id));
            return;
        }
        let job = &self.jobs[&id];
        if job.parts.primary.running == 0 {
            self.fall_back(id, Degradation::PrimaryLate, out);
        } else if self.hedges.spend() {
            self.stats.hedges += 1;
            let job = self.job(id);
            (job.is_hedged, job.degraded) = (true, None);
            self.start(id, Stage::Hedged);
        }
    }

    /// When the primary is predicted, with margin, to finish a job that it has.
    fn primary_ends(&self, id: JobId) -> Ns {
        let job = &self.jobs[&id];
        let part = &job.parts.primary;
        let running = (self.lanes_of(Tier::Primary).flat_map(|lane| &lane.running))
            .filter(|batch| batch.members.iter().any(|member| member.slice.job == id))
            // A batch that is already overdue gives no information about its end.
            .map(|batch| if batch.ends_p99 <= self.now { Ns::MAX } else { batch.ends_p99 })
            .max()
            .unwrap_or(Ns::ZERO);
        if part.todo.is_empty() {
            return running;
        }
        let rest = part.todo.iter().cloned().flatten().map(|place| job.length(Tier::Primary, place));
        // `finish` counts the job's own queued work as ahead of it, so it is subtracted. The error is at most that
        // work, towards late.
        let finish = self.finish(Tier::Primary, job.tenant, job.due, &Load::of(rest));
        running.max(finish.saturating_sub(part.work))
    }

    /// Whether a tier has an idle lane and an empty queue.
    fn is_idle(&self, tier: Tier) -> bool {
        self.queues[tier].jobs() == 0
            && self.lanes_of(tier).any(|lane| lane.health == Health::Up && lane.running.is_empty())
    }

    /// Whether a tier that is predicted to miss `latest` is idle, and meets it by the optimistic bound of the prediction.
    pub(super) fn is_worth_a_try(&self, tier: Tier, load: &Load, latest: Ns) -> bool {
        self.is_idle(tier) && self.now.saturating_add(self.predictors[tier].at_best(load, self.now)) <= latest
    }

    /// Takes the token of a try. Returns false if there is none.
    pub(super) fn pay_for_try(&mut self) -> bool {
        let is_paid = self.hedges.spend();
        self.stats.tries += u64::from(is_paid);
        is_paid
    }

    /// Counts the tries of an answered job that were in time: those whose scores were complete.
    pub(super) fn settle_tries(&mut self, job: &Job, is_late: bool) {
        for tier in Tier::ALL {
            if job.tried[tier] && job.parts[tier].complete() && !is_late {
                self.stats.tries_in_time += 1;
                self.hedges.give_back();
            }
        }
    }

    /// Called before a batch with this start and load takes a job. Returns true if the job would be late and was
    /// removed from the queue.
    pub(super) fn give_up_late(
        &mut self,
        id: JobId,
        tier: Tier,
        (starts, before): (Ns, Load),
        out: &mut Vec<Action>,
    ) -> bool {
        let job = &self.jobs[&id];
        let Some(deadline) = job.deadline.filter(|_| !job.tried[tier]) else { return false };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_earned_in_thousandths_and_saved_up_to_the_burst() {
        let mut tokens =
            HedgeTokens::new(&Limits { hedges_burst: 2, hedges_permille: 100, ..Limits::default() });
        let spend = |tokens: &mut HedgeTokens| (0..9).take_while(|_| tokens.spend()).count();
        assert_eq!(spend(&mut tokens), 2);
        (0..9).for_each(|_| tokens.earn());
        assert_eq!(spend(&mut tokens), 0);
        tokens.earn();
        assert_eq!(spend(&mut tokens), 1);
        tokens.give_back();
        assert_eq!(spend(&mut tokens), 1);
        (0..100).for_each(|_| tokens.earn());
        tokens.give_back();
        assert_eq!(spend(&mut tokens), 2);
    }
}
