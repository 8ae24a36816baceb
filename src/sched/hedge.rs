//! Lateness: who will miss the budget, and what answers instead.
//!
//! The fallback starts at the last moment at which it still meets the budget. What the primary
//! has not begun by then is withdrawn, which costs nothing; what it has begun is raced, and such
//! races are capped by a token bucket (Dean and Barroso, "The Tail at Scale").

use super::config::Limits;
use super::event::{Action, JobId};
use super::job::Stage;
use super::{Scheduler, Timer};
use crate::base::{Ns, Tier};
use crate::forecast::predict::Load;
use crate::rerank::{Degradation, Policy, Refusal, Served};
use std::sync::Arc;

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

    /// Whether the fallback may answer a job that the primary has, and is up.
    pub(super) fn may_fall_back(&self, id: JobId) -> bool {
        let job = &self.jobs[&id];
        job.policy == Policy::Auto
            && !job.lengths.fallback.is_empty()
            && !job.failed.fallback
            && self.is_available(Tier::Fallback)
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
        let predictor = &self.predictors[tier];
        if starts.saturating_add(predictor.p99(&load)) <= deadline {
            return false;
        }
        // What has not begun costs nothing to move, and a doubt is enough; else it must be late.
        let is_late = starts.saturating_add(part.work) > deadline;
        match job.stage {
            Stage::Full if self.may_fall_back(id) && (is_late || !part.has_begun()) => {
                self.fall_back(id, Degradation::PrimaryLate, out);
                true
            }
            _ if !is_late => false,
            Stage::TopK { .. } if part.running == 0 => {
                self.answer_top_k(id, Degradation::PrimaryLate, out);
                true
            }
            Stage::TopK { .. } => {
                self.withdraw(id, Tier::Primary);
                true
            }
            // The race is lost; the fallback has been started.
            Stage::Hedged if tier == Tier::Primary => {
                self.withdraw(id, Tier::Primary);
                self.job(id).degraded = Some(Degradation::PrimaryLate);
                self.job(id).stage = Stage::Fallback { then_top_k: false };
                self.fallback_came_back(id, out);
                true
            }
            Stage::Full | Stage::Fallback { .. } if !part.has_begun() => {
                let retry_after = starts.saturating_sub(self.now).max(Ns::from_millis(1));
                self.refuse(id, Refusal::BudgetTooShort { retry_after }, out);
                true
            }
            // Begun, and nothing faster: it ends late and says so.
            Stage::Full | Stage::Fallback { .. } | Stage::Hedged | Stage::Ranking => false,
        }
    }

    /// The budget is spent but for the answer's way back.
    pub(super) fn deadline(&mut self, id: JobId, out: &mut Vec<Action>) {
        let Some(job) = self.jobs.get(&id) else { return };
        match job.stage {
            Stage::Hedged if job.has_fallback_scores() => {
                self.job(id).degraded = Some(Degradation::PrimaryLate);
                self.answer(id, Served::Fallback, out);
            }
            Stage::TopK { .. } => self.answer_top_k(id, Degradation::PrimaryLate, out),
            Stage::Full | Stage::Fallback { .. } if job.batches == 0 && job.compute == Ns::ZERO => {
                self.refuse(id, Refusal::BudgetTooShort { retry_after: Ns::from_millis(1) }, out);
            }
            // Something runs: its scores are worth a late answer that says so.
            Stage::Full | Stage::Hedged | Stage::Fallback { .. } | Stage::Ranking => {}
        }
    }

    /// Gives a job's work from the primary to the fallback.
    pub(super) fn fall_back(&mut self, id: JobId, why: Degradation, out: &mut Vec<Action>) {
        self.withdraw(id, Tier::Primary);
        self.job(id).degraded = Some(why);
        if self.job(id).has_fallback_scores() {
            self.answer(id, Served::Fallback, out);
        } else if self.job(id).stage == Stage::Hedged {
            self.job(id).stage = Stage::Fallback { then_top_k: false };
        } else {
            self.start(id, Stage::Fallback { then_top_k: false });
        }
    }

    /// The fallback has scored every candidate of a job.
    pub(super) fn fallback_came_back(&mut self, id: JobId, out: &mut Vec<Action>) {
        let job = &self.jobs[&id];
        if !job.has_fallback_scores() {
            return;
        }
        match job.stage {
            Stage::Fallback { then_top_k: true } if self.is_available(Tier::Primary) => {
                self.job(id).stage = Stage::Ranking;
                out.push(Action::Rank { job: id });
            }
            Stage::Fallback { .. } => self.answer(id, Served::Fallback, out),
            // The primary may still make it: the better answer is worth waiting for until the
            // last moment.
            Stage::Hedged if job.deadline.is_some_and(|deadline| self.now >= deadline) => {
                self.job(id).degraded = Some(Degradation::PrimaryLate);
                self.answer(id, Served::Fallback, out);
            }
            Stage::Hedged => {}
            Stage::Full | Stage::Ranking | Stage::TopK { .. } => {
                unreachable!("the fallback works on a job only while a stage waits for it")
            }
        }
    }

    /// The fallback's order is known: gives the primary as many of the best as fit the budget.
    pub(super) fn choose_k(&mut self, id: JobId, order: Arc<[u32]>, out: &mut Vec<Action>) {
        let Some(job) = self.jobs.get(&id).filter(|job| job.stage == Stage::Ranking) else { return };
        let default = (job.policy == Policy::TopK).then_some(self.limits.top_k_default);
        let wanted = job.top_k.or(default).map_or(order.len(), |k| (k as usize).min(order.len()));
        let latest = job.deadline.unwrap_or(self.now.saturating_add(self.limits.wait_ns_max));
        let mut load = Load::default();
        let wait = self.finish(Tier::Primary, job.tenant, job.due, &load);
        let predictor = &self.predictors.primary;
        let mut k = 0;
        for &candidate in &order[..wanted] {
            load.add(job.lengths.primary[candidate as usize]);
            if wait.saturating_add(predictor.surely(&load)) > latest {
                break;
            }
            k += 1;
        }
        if k < self.limits.top_k_min.min(wanted as u32).max(1) {
            let job = self.job(id);
            job.degraded = job.degraded.or(Some(Degradation::PredictedLate));
            return self.answer(id, Served::Fallback, out);
        }
        self.job(id).stage = Stage::TopK { k };
        self.enqueue_all(id, Tier::Primary, Some(order), k);
    }

    /// Answers a top-k with as many of the best as the primary has come back with.
    pub(super) fn answer_top_k(&mut self, id: JobId, why: Degradation, out: &mut Vec<Action>) {
        let job = self.job(id);
        let k = job.parts.primary.done_prefix();
        if k < job.parts.primary.pairs {
            job.degraded = job.degraded.or(Some(why));
        }
        let served = if k > 0 { Served::TopK { k } } else { Served::Fallback };
        self.answer(id, served, out);
    }
}
