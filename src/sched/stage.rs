//! The stages of a job: every transition is in this file.
//!
//! | stage | its scores are complete | its tier failed or went down | the deadline passes |
//! |---|---|---|---|
//! | `Full` | answer: full | `Fallback`, else one more attempt, then refuse | goes on, declared late; refuse if the primary has not begun it, or is only tried |
//! | `Hedged` | primary: answer full. Fallback: wait for the primary until the deadline | primary: `Fallback`. Fallback: `Full` | answer: fallback, if it has its scores |
//! | `Fallback` | `Ranking` if the primary is to score the best, else answer: fallback | `Full`, else one more attempt, then refuse | goes on, declared late; refuse if the fallback has not begun it, or is only tried |
//! | `Ranking` | the order comes: `TopK` (of all candidates if the primary is tried), or answer: fallback if too few fit | | |
//! | `TopK` | answer: top-k | answer: top-k of what came back, else fallback | the same |
//!
//! A primary that completes all candidates answers in full from any stage. A job that is predicted late moves too:
//! from `Full` to `Hedged` or `Fallback` when the last moment of the fallback comes (`hedge`), and before a batch takes
//! it as [`Scheduler::predicted_late`] says.

use super::Scheduler;
use super::event::{Action, JobId};
use crate::base::{Ns, Tier};
use crate::forecast::predict::Load;
use crate::rerank::{Degradation, Policy, Refusal, Served};
use std::sync::Arc;

/// The stage of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The primary on every candidate.
    Full,
    /// As [`Stage::Full`], with the fallback started because the primary might be late.
    Hedged,
    /// The fallback on every candidate; then the primary on the best ones, or an answer.
    Fallback { then_top_k: bool },
    /// Waiting for the driver's order of the fallback's scores.
    Ranking,
    /// The primary on the best `k`; the fallback's scores are complete.
    TopK { k: u32 },
}

impl Stage {
    /// Whether the stage waits for a tier's scores.
    pub fn works(self, tier: Tier) -> bool {
        match (tier, self) {
            (Tier::Primary, Self::Full | Self::Hedged | Self::TopK { .. }) => true,
            (Tier::Fallback, Self::Hedged | Self::Fallback { .. }) => true,
            (Tier::Primary, Self::Fallback { .. } | Self::Ranking) => false,
            (Tier::Fallback, Self::Full | Self::Ranking | Self::TopK { .. }) => false,
        }
    }
}

impl Scheduler {
    /// Sets a job's stage and queues the pairs that it needs.
    pub(super) fn start(&mut self, id: JobId, stage: Stage) {
        let job = self.job(id);
        job.stage = stage;
        match stage {
            Stage::Full => {
                let pairs = job.pairs();
                self.enqueue_all(id, Tier::Primary, None, pairs);
                self.arm_hedge(id);
            }
            Stage::Hedged | Stage::Fallback { .. } => {
                let pairs = job.pairs();
                self.enqueue_all(id, Tier::Fallback, None, pairs);
            }
            Stage::TopK { .. } | Stage::Ranking => {}
        }
    }

    /// A tier scored some of a job's pairs.
    pub(super) fn scored(&mut self, id: JobId, tier: Tier, out: &mut Vec<Action>) {
        let job = self.job(id);
        if !job.parts[tier].complete() {
            // Its work was withdrawn at the last moment, and the last running batch has ended.
            let part = &job.parts[tier];
            let cut_short = part.running == 0 && part.todo.is_empty();
            if matches!(job.stage, Stage::TopK { .. }) && tier == Tier::Primary && cut_short {
                self.answer_top_k(id, Degradation::PrimaryLate, out);
            }
            return;
        }
        match (tier, job.stage) {
            (Tier::Primary, Stage::TopK { .. }) => self.answer_top_k(id, Degradation::PrimaryLate, out),
            (Tier::Fallback, _) => self.fallback_came_back(id, out),
            // Also if the job was given to the fallback meanwhile.
            (Tier::Primary, Stage::Full | Stage::Hedged | Stage::Fallback { .. } | Stage::Ranking) => {
                job.degraded = None;
                self.answer(id, Served::Full, out);
            }
        }
    }

    /// Whether the fallback may start a job that the primary has, and is available. A part of which pairs still run is
    /// not started again.
    pub(super) fn may_fall_back(&self, id: JobId) -> bool {
        let job = &self.jobs[&id];
        job.policy == Policy::Auto
            && !job.lengths.fallback.is_empty()
            && !job.failed.fallback
            && job.parts.fallback.running == 0
            && self.is_available(Tier::Fallback)
    }

    /// Called if a tier that begins a job's remaining work at `starts` is predicted to miss the deadline: with its
    /// margin, or without it (`is_certain`). Returns true if the job left the tier's queue.
    pub(super) fn predicted_late(
        &mut self,
        id: JobId,
        tier: Tier,
        is_certain: bool,
        starts: Ns,
        out: &mut Vec<Action>,
    ) -> bool {
        let part = &self.jobs[&id].parts[tier];
        match self.jobs[&id].stage {
            // Moving work that has not begun costs nothing, so the prediction with margin suffices.
            Stage::Full if self.may_fall_back(id) && (is_certain || !part.has_begun()) => {
                self.fall_back(id, Degradation::PrimaryLate, out);
                true
            }
            _ if !is_certain => false,
            Stage::TopK { .. } if part.running == 0 => {
                self.answer_top_k(id, Degradation::PrimaryLate, out);
                true
            }
            Stage::TopK { .. } => {
                self.withdraw(id, Tier::Primary);
                true
            }
            // The primary is late; the fallback is already running.
            Stage::Hedged if tier == Tier::Primary => {
                self.withdraw(id, Tier::Primary);
                self.job(id).degraded = Some(Degradation::PrimaryLate);
                self.job(id).stage = Stage::Fallback { then_top_k: false };
                self.fallback_came_back(id, out);
                true
            }
            Stage::Full | Stage::Fallback { .. } if !part.has_begun() => {
                let retry_after = starts.saturating_sub(self.now).max(Ns::from_millis(1));
                self.refuse(id, Refusal::BudgetTooShortNow { retry_after }, out);
                true
            }
            // It has begun and nothing is faster: it ends late and is declared late.
            Stage::Full | Stage::Fallback { .. } | Stage::Hedged | Stage::Ranking => false,
        }
    }

    /// The deadline, minus the answer's margin, has passed.
    pub(super) fn deadline(&mut self, id: JobId, out: &mut Vec<Action>) {
        let Some(job) = self.jobs.get(&id) else { return };
        match job.stage {
            Stage::Hedged if job.has_fallback_scores() => {
                self.job(id).degraded = Some(Degradation::PrimaryLate);
                self.answer(id, Served::Fallback, out);
            }
            Stage::TopK { .. } => self.answer_top_k(id, Degradation::PrimaryLate, out),
            Stage::Full => self.deadline_of(id, Tier::Primary, out),
            Stage::Fallback { .. } => self.deadline_of(id, Tier::Fallback, out),
            Stage::Hedged | Stage::Ranking => {}
        }
    }

    /// The deadline of a job that waits for one tier only. The history of the job in the other tier does not matter.
    fn deadline_of(&mut self, id: JobId, tier: Tier, out: &mut Vec<Action>) {
        let job = &self.jobs[&id];
        let refusal = if !job.parts[tier].has_begun() {
            Refusal::BudgetTooShortNow { retry_after: Ns::from_millis(1) }
        } else if job.tried[tier] {
            // A try without insurance: the refusal that it would have had at once.
            self.too_late(job)
        } else {
            // It has begun: its scores give a late answer, declared as late.
            return;
        };
        self.refuse(id, refusal, out);
    }

    /// Moves a job's work from the primary to the fallback.
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
            Stage::Fallback { then_top_k } => {
                if then_top_k {
                    let job = self.job(id);
                    job.degraded = job.degraded.or(Some(Degradation::PrimaryUnavailable));
                }
                self.answer(id, Served::Fallback, out);
            }
            // The primary may still finish in time, and its answer is better: wait until the deadline.
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

    /// The fallback's order is known: gives the primary as many of the best candidates as fit the budget. If not all fit but
    /// the primary is tried, it gets all of them, and the deadline answers with those that are scored by then.
    pub(super) fn choose_k(&mut self, id: JobId, order: Arc<[u32]>, out: &mut Vec<Action>) {
        let Some(job) = self.jobs.get(&id).filter(|job| job.stage == Stage::Ranking) else { return };
        let default = (job.policy == Policy::TopK).then_some(self.limits.top_k_default);
        let wanted = job.top_k.or(default).map_or(order.len(), |k| (k as usize).min(order.len()));
        // Without a deadline no number of candidates is too late.
        let latest = job.deadline.unwrap_or(Ns::MAX);
        let best = order[..wanted].iter().map(|&candidate| job.lengths.primary[candidate as usize]);
        let wait = self.finish(Tier::Primary, job.tenant, job.due, &Load::default());
        let mut load = Load::default();
        let fits = |length: &u32| {
            load.add(*length);
            wait.saturating_add(self.predictors.primary.surely(&load)) <= latest
        };
        let k = best.clone().take_while(fits).count();
        let may_try = k < wanted
            && job.deadline.is_some()
            && self.is_worth_a_try(Tier::Primary, &Load::of(best), latest);
        if may_try && self.pay_for_try() {
            self.job(id).tried.primary = true;
            return self.start_top_k(id, order, wanted);
        }
        if k < (self.limits.top_k_min as usize).min(wanted).max(1) {
            let job = self.job(id);
            job.degraded = job.degraded.or(Some(Degradation::PredictedLate));
            return self.answer(id, Served::Fallback, out);
        }
        self.start_top_k(id, order, k);
    }

    fn start_top_k(&mut self, id: JobId, order: Arc<[u32]>, k: usize) {
        self.job(id).stage = Stage::TopK { k: k as u32 };
        self.enqueue_all(id, Tier::Primary, Some(order), k as u32);
    }

    /// Answers a top-k with as many of the best as the primary has scored.
    pub(super) fn answer_top_k(&mut self, id: JobId, why: Degradation, out: &mut Vec<Action>) {
        let job = self.job(id);
        let k = job.parts.primary.done_prefix();
        if k == job.pairs() && job.policy == Policy::Auto {
            job.degraded = None;
            return self.answer(id, Served::Full, out);
        }
        if k < job.parts.primary.pairs {
            job.degraded = job.degraded.or(Some(why));
        }
        let served = if k > 0 { Served::TopK { k } } else { Served::Fallback };
        self.answer(id, served, out);
    }

    /// A tier failed on a job's own pairs. They are queued for one more attempt, unless the other tier can take over.
    pub(super) fn tier_failed(&mut self, id: JobId, tier: Tier, out: &mut Vec<Action>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let again = std::mem::replace(&mut job.failed[tier], true);
        let stage = job.stage;
        match (tier, stage) {
            (Tier::Primary, Stage::TopK { .. }) => {
                self.answer_top_k(id, Degradation::PrimaryFailed, out);
            }
            (Tier::Primary, Stage::Full | Stage::Hedged)
                if stage == Stage::Hedged || self.may_fall_back(id) =>
            {
                self.fall_back(id, Degradation::PrimaryFailed, out);
            }
            (Tier::Fallback, Stage::Hedged) => {
                self.withdraw(id, Tier::Fallback);
                self.job(id).stage = Stage::Full;
            }
            (Tier::Fallback, Stage::Fallback { .. }) if self.may_go_full(id) => {
                self.withdraw(id, Tier::Fallback);
                self.start(id, Stage::Full);
            }
            (Tier::Primary, Stage::Full | Stage::Hedged) | (Tier::Fallback, Stage::Fallback { .. })
                if again =>
            {
                self.refuse(id, Refusal::ModelFailed, out);
            }
            // One more attempt, or nothing to do because the stage did not wait for this tier.
            (Tier::Primary | Tier::Fallback, _) => {}
        }
    }

    /// Whether the primary may take over after a failure of the fallback.
    fn may_go_full(&self, id: JobId) -> bool {
        let job = &self.jobs[&id];
        let part = &job.parts.primary;
        job.policy == Policy::Auto
            && !job.lengths.primary.is_empty()
            && !job.failed.primary
            && part.running == 0
            && self.is_available(Tier::Primary)
    }

    /// No lane of a tier is left. Jobs that may use the other tier move there.
    pub(super) fn tier_went_down(&mut self, tier: Tier, out: &mut Vec<Action>) {
        for id in self.queues[tier].all() {
            let Some(job) = self.jobs.get(&id) else { continue };
            match (tier, job.stage) {
                (Tier::Primary, Stage::Full | Stage::Hedged)
                    if job.stage == Stage::Hedged || self.may_fall_back(id) =>
                {
                    self.fall_back(id, Degradation::PrimaryUnavailable, out);
                }
                (Tier::Primary, Stage::TopK { .. }) => {
                    self.answer_top_k(id, Degradation::PrimaryUnavailable, out);
                }
                (Tier::Fallback, Stage::Fallback { .. }) if self.may_go_full(id) => {
                    self.withdraw(id, Tier::Fallback);
                    self.start(id, Stage::Full);
                }
                // They wait for a lane to come back, until their deadline.
                (Tier::Primary | Tier::Fallback, _) => {}
            }
        }
    }
}
