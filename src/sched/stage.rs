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
use super::job::Job;
use crate::base::{ModelId, Ns, Tier};
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
                let pairs = job.pairs;
                self.enqueue_all(id, Tier::Primary, None, pairs);
                self.arm_hedge(id);
            }
            Stage::Hedged | Stage::Fallback { .. } => {
                let pairs = job.pairs;
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
            if matches!(job.stage, Stage::TopK { .. }) && cut_short {
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
            && !job.failed.fallback
            && job.parts.fallback.running == 0
            && self.has_available(job, Tier::Fallback)
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
            Stage::Fallback { then_top_k: true } if self.has_available(job, Tier::Primary) => {
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
        // Without a deadline all fit.
        let latest = job.deadline.unwrap_or(Ns::MAX);
        let best = order[..wanted].iter().map(|&candidate| job.lengths.primary[candidate as usize]);
        let primary = job.line.primary.expect("a job that is ranked for the primary has one");
        let wait = self.finish(primary, job.tenant, job.due, &Load::default());
        let prefix = job.prefixes.primary;
        let mut load = Load::behind(prefix, []);
        let fits = |length: &u32| {
            load.add_behind(prefix, *length);
            wait.saturating_add(self.models[primary].predictor.surely(&load)) <= latest
        };
        let k = best.clone().take_while(fits).count();
        let may_try = k < wanted && self.is_worth_a_try(primary, &Load::behind(prefix, best), latest);
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
        if k == job.pairs && job.policy == Policy::Auto {
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
            && !job.failed.primary
            && part.running == 0
            && self.has_available(job, Tier::Primary)
    }

    /// Whether a job has a model in a tier that is available.
    fn has_available(&self, job: &Job, tier: Tier) -> bool {
        job.line[tier].is_some_and(|model| self.is_available(model))
    }

    /// No lane of a model is left. Jobs that may use their other tier move there.
    pub(super) fn model_went_down(&mut self, model: ModelId, out: &mut Vec<Action>) {
        for id in self.models[model].queue.all() {
            let Some(job) = self.jobs.get(&id) else { continue };
            let tier = job.tier_of(model);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{DeviceId, LaneId, PerTier};
    use crate::sched::Event;
    use crate::sched::config::{LaneConfig, Limits};
    use crate::sched::event::Fault;
    use crate::sched::hedge::HedgeTokens;
    use crate::sched::job::Part;
    use crate::sched::lane::Health;
    use crate::sched::tests::{
        FALLBACK, MS, PRIMARY, TEACHER, World, config, config_without_tries, dispatched, dispatched_to,
        model_of,
    };

    const JOB: JobId = JobId(1);
    const PAIRS: u32 = 10;
    const DEADLINE: Ns = Ns(100 * MS);
    const LATE: Option<Degradation> = Some(Degradation::PrimaryLate);

    /// Job 1 with a deadline is in this stage. Its tiers have begun nothing, because both are busy.
    fn world(stage: Stage, policy: Policy) -> World {
        let mut world = World::new(config_without_tries());
        world.arrive(8, 10, None, Policy::Full);
        world.arrive(9, 10, None, Policy::Fallback);
        world.arrive(JOB.0, PAIRS as usize, None, Policy::Auto);
        let job = world.sched.job(JOB);
        (job.policy, job.deadline) = (policy, Some(DEADLINE));
        match stage {
            Stage::Full => {}
            Stage::Hedged => world.sched.start(JOB, stage),
            Stage::Fallback { .. } => {
                world.sched.withdraw(JOB, Tier::Primary);
                world.sched.start(JOB, stage);
            }
            Stage::Ranking | Stage::TopK { .. } => {
                world.sched.withdraw(JOB, Tier::Primary);
                score(&mut world, Tier::Fallback, PAIRS);
                world.sched.job(JOB).stage = stage;
                if let Stage::TopK { k } = stage {
                    world.sched.start_top_k(JOB, (0..PAIRS).collect(), k as usize);
                }
            }
        }
        world.actions.clear();
        world
    }

    /// A tier has scored the first positions of job 1, and has no more to do.
    fn score(world: &mut World, tier: Tier, done: u32) {
        world.sched.withdraw(JOB, tier);
        let part = &mut world.sched.job(JOB).parts[tier];
        let pairs = if part.pairs == 0 { PAIRS } else { part.pairs };
        *part = Part { pairs, order: part.order.clone(), ..Part::default() };
        part.done.push(0..done);
    }

    /// The state of job 1, or its end.
    #[derive(Clone, Debug, PartialEq)]
    enum Now {
        In(Stage, Option<Degradation>),
        Answered(Served, Option<Degradation>),
        Refused(Refusal),
    }

    fn now(world: &World, actions: &[Action]) -> Now {
        let ends = actions.iter().find_map(|action| match action {
            Action::Answer { job: JOB, answer } => Some(Now::Answered(answer.served, answer.degraded)),
            Action::Refuse { job: JOB, refusal } => Some(Now::Refused(refusal.clone())),
            _ => None,
        });
        ends.unwrap_or_else(|| {
            let job = &world.sched.jobs[&JOB];
            Now::In(job.stage, job.degraded)
        })
    }

    const FULL: Stage = Stage::Full;
    const ON_FALLBACK: Stage = Stage::Fallback { then_top_k: false };
    const FIVE: Stage = Stage::TopK { k: 5 };

    #[test]
    fn a_stage_waits_for_the_tiers_that_its_answer_needs() {
        for (stage, primary, fallback) in [
            (FULL, true, false),
            (Stage::Hedged, true, true),
            (ON_FALLBACK, false, true),
            (Stage::Fallback { then_top_k: true }, false, true),
            (Stage::Ranking, false, false),
            (FIVE, true, false),
        ] {
            assert_eq!(
                (stage.works(Tier::Primary), stage.works(Tier::Fallback)),
                (primary, fallback),
                "{stage:?}"
            );
        }
    }

    #[test]
    fn a_tier_takes_over_if_the_policy_allows_it_and_it_can_do_all_of_the_work() {
        let takes_over = |world: &World| (world.sched.may_fall_back(JOB), world.sched.may_go_full(JOB));
        assert_eq!(takes_over(&world(FULL, Policy::Auto)), (true, true));
        type Set = fn(&mut World);
        let obstacles: [(&str, Set); 5] = [
            ("the policy", |world| world.sched.job(JOB).policy = Policy::Full),
            ("no pairs that it can read", |world| world.sched.job(JOB).line = PerTier::default()),
            ("it failed", |world| world.sched.job(JOB).failed = PerTier { primary: true, fallback: true }),
            ("its pairs still run", |world| {
                Tier::ALL.iter().for_each(|&tier| world.sched.job(JOB).parts[tier].running = 1);
            }),
            ("no lane", |world| {
                let rest = Health::Resting { until: Ns::MAX };
                world.sched.lanes.values_mut().for_each(|lane| lane.health = rest);
            }),
        ];
        for (obstacle, set) in obstacles {
            let mut world = world(FULL, Policy::Auto);
            set(&mut world);
            assert_eq!(takes_over(&world), (false, false), "{obstacle}");
        }
    }

    #[test]
    fn a_job_that_is_predicted_late_moves_on_ends_or_stays() {
        use Now::{Answered, In, Refused};
        use Policy::{Auto, Full};
        const STARTS: Ns = Ns(8 * MS);
        let begun = |tier: Tier| move |world: &mut World| world.sched.job(JOB).parts[tier].done.push(0..1);
        let runs = |world: &mut World| world.sched.job(JOB).parts.primary.running = 1;
        let nothing = |_: &mut World| {};
        let scored = |world: &mut World| score(world, Tier::Fallback, PAIRS);
        let refused = Refused(Refusal::BudgetTooShortNow { retry_after: STARTS - Ns(MS) });
        type Set<'a> = &'a dyn Fn(&mut World);
        let (on_primary, on_fallback) = (begun(Tier::Primary), begun(Tier::Fallback));
        let rows: [(Stage, Policy, Tier, bool, Set<'_>, bool, Now); 17] = [
            // The fallback takes over what has not begun, and what is certainly late.
            (FULL, Auto, Tier::Primary, false, &nothing, true, In(ON_FALLBACK, LATE)),
            (FULL, Auto, Tier::Primary, false, &on_primary, false, In(FULL, None)),
            (FULL, Auto, Tier::Primary, true, &on_primary, true, In(ON_FALLBACK, LATE)),
            // Without the fallback, it is refused if it has not begun and is certainly late.
            (FULL, Full, Tier::Primary, false, &nothing, false, In(FULL, None)),
            (FULL, Full, Tier::Primary, true, &nothing, true, refused.clone()),
            (FULL, Full, Tier::Primary, true, &on_primary, false, In(FULL, None)),
            (ON_FALLBACK, Auto, Tier::Fallback, false, &nothing, false, In(ON_FALLBACK, None)),
            (ON_FALLBACK, Auto, Tier::Fallback, true, &nothing, true, refused),
            (ON_FALLBACK, Auto, Tier::Fallback, true, &on_fallback, false, In(ON_FALLBACK, None)),
            // A top-k ends with the scores that are back, once nothing runs.
            (FIVE, Auto, Tier::Primary, false, &nothing, false, In(FIVE, None)),
            (FIVE, Auto, Tier::Primary, true, &nothing, true, Answered(Served::Fallback, LATE)),
            (FIVE, Auto, Tier::Primary, true, &on_primary, true, Answered(Served::TopK { k: 1 }, LATE)),
            (FIVE, Auto, Tier::Primary, true, &runs, true, In(FIVE, None)),
            // The primary gives up a race; the fallback does not.
            (Stage::Hedged, Auto, Tier::Primary, false, &nothing, false, In(Stage::Hedged, None)),
            (Stage::Hedged, Auto, Tier::Primary, true, &nothing, true, In(ON_FALLBACK, LATE)),
            (Stage::Hedged, Auto, Tier::Primary, true, &scored, true, Answered(Served::Fallback, LATE)),
            (Stage::Hedged, Auto, Tier::Fallback, true, &nothing, false, In(Stage::Hedged, None)),
        ];
        for (row, (stage, policy, tier, is_certain, set, leaves, expected)) in rows.into_iter().enumerate() {
            let mut world = world(stage, policy);
            world.sched.now = Ns(MS);
            set(&mut world);
            let mut out = Vec::new();
            assert_eq!(
                world.sched.predicted_late(JOB, tier, is_certain, STARTS, &mut out),
                leaves,
                "row {row}"
            );
            assert_eq!(now(&world, &out), expected, "row {row}");
            if let In(..) = expected {
                let part = &world.sched.jobs[&JOB].parts[tier];
                assert_eq!(part.queued.is_none(), leaves, "row {row}");
            }
        }
        // A retry is told to wait for a millisecond at least.
        let mut world = world(FULL, Full);
        let mut out = Vec::new();
        world.sched.predicted_late(JOB, Tier::Primary, true, Ns::ZERO, &mut out);
        assert_eq!(now(&world, &out), Refused(Refusal::BudgetTooShortNow { retry_after: Ns(MS) }));
    }

    #[test]
    fn a_race_ends_at_the_deadline_if_the_fallback_has_its_scores() {
        let waits = Now::In(Stage::Hedged, None);
        let won = Now::Answered(Served::Fallback, LATE);
        for (at, has_scores, expected) in [(DEADLINE, false, &waits), (DEADLINE, true, &won)] {
            let mut world = world(Stage::Hedged, Policy::Auto);
            world.sched.now = at;
            if has_scores {
                score(&mut world, Tier::Fallback, PAIRS);
            }
            let mut out = Vec::new();
            world.sched.deadline(JOB, &mut out);
            assert_eq!(&now(&world, &out), expected);
        }
        // Scores that come later end it at once.
        let before = Ns(DEADLINE.0 - 1);
        for (at, deadline, expected) in
            [(before, Some(DEADLINE), &waits), (DEADLINE, Some(DEADLINE), &won), (Ns::MAX, None, &waits)]
        {
            let mut world = world(Stage::Hedged, Policy::Auto);
            (world.sched.now, world.sched.job(JOB).deadline) = (at, deadline);
            score(&mut world, Tier::Fallback, PAIRS);
            let mut out = Vec::new();
            world.sched.fallback_came_back(JOB, &mut out);
            assert_eq!(&now(&world, &out), expected, "{at:?}");
        }
    }

    #[test]
    fn a_tier_that_fails_or_goes_down_gives_its_work_to_the_other() {
        use Degradation::{PrimaryFailed, PrimaryUnavailable};
        use Now::{Answered, In};
        use Policy::{Auto, Full};
        let half = |k| Served::TopK { k };
        for (stage, policy, tier, failed, down) in [
            (
                FULL,
                Auto,
                Tier::Primary,
                In(ON_FALLBACK, Some(PrimaryFailed)),
                In(ON_FALLBACK, Some(PrimaryUnavailable)),
            ),
            (FULL, Full, Tier::Primary, In(FULL, None), In(FULL, None)),
            (
                Stage::Hedged,
                Auto,
                Tier::Primary,
                In(ON_FALLBACK, Some(PrimaryFailed)),
                In(ON_FALLBACK, Some(PrimaryUnavailable)),
            ),
            (Stage::Hedged, Auto, Tier::Fallback, In(FULL, None), In(Stage::Hedged, None)),
            (ON_FALLBACK, Auto, Tier::Fallback, In(FULL, None), In(FULL, None)),
            (ON_FALLBACK, Policy::Fallback, Tier::Fallback, In(ON_FALLBACK, None), In(ON_FALLBACK, None)),
            (
                FIVE,
                Auto,
                Tier::Primary,
                Answered(half(2), Some(PrimaryFailed)),
                Answered(half(2), Some(PrimaryUnavailable)),
            ),
        ] {
            for (goes_down, expected) in [(false, failed), (true, down)] {
                let mut world = world(stage, policy);
                // The fallback has begun a race, and a top-k has two of its best.
                if stage == Stage::Hedged {
                    world.sched.job(JOB).parts.fallback.running = u32::from(tier == Tier::Primary);
                }
                if stage == FIVE {
                    world.sched.job(JOB).parts.primary.done.push(0..2);
                }
                let mut out = Vec::new();
                if goes_down {
                    world.sched.model_went_down(model_of(tier), &mut out);
                } else {
                    world.sched.tier_failed(JOB, tier, &mut out);
                }
                let found = now(&world, &out);
                assert_eq!(found, expected, "{stage:?}, {policy:?}, {tier:?}, {goes_down}");
                if let In(stage, _) = found {
                    for tier in Tier::ALL {
                        let is_queued = world.sched.jobs[&JOB].parts[tier].queued.is_some();
                        assert_eq!(is_queued, stage.works(tier), "{stage:?}, {tier:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_primary_that_takes_over_answers_in_full() {
        let mut world = World::new(config());
        let busy = dispatched(&world.arrive(9, 10, None, Policy::Full)).unwrap();
        let on_fallback = dispatched_to(&world.arrive(1, 10, Some(15), Policy::Auto), FALLBACK);
        assert_eq!(world.sched.jobs[&JOB].degraded, Some(Degradation::PredictedLate));
        world.done(FALLBACK, on_fallback.batch, Err(Fault::Failed));
        let full = dispatched_to(&world.done(PRIMARY, busy.batch, Ok(())), PRIMARY);
        world.done(PRIMARY, full.batch, Ok(()));
        assert_eq!(world.answers().last(), Some(&(1, Served::Full, None)));
    }

    #[test]
    fn a_top_k_that_was_cut_short_waits_for_the_batches_that_run() {
        let mut config = config_without_tries();
        config.lanes.push(LaneConfig { on: DeviceId(2), ..config.lanes[0].clone() });
        config.limits.top_k_default = 30;
        let mut world = World::new(config);
        let mut actions = world.arrive(1, 40, None, Policy::TopK);
        while !actions.contains(&Action::Rank { job: JOB }) {
            let dispatch = dispatched_to(&actions, FALLBACK);
            actions = world.done(FALLBACK, dispatch.batch, Ok(()));
        }
        let actions = world.rank(1, 40);
        let batches = [PRIMARY, LaneId(2)].map(|lane| dispatched_to(&actions, lane));
        let begun = batches.iter().map(|dispatch| dispatch.slices[0].range.end).max();
        world.sched.job(JOB).deadline = Some(DEADLINE);
        assert!(world.sched.predicted_late(JOB, Tier::Primary, true, DEADLINE, &mut Vec::new()));
        world.done(PRIMARY, batches[0].batch, Ok(()));
        assert_eq!(world.answers(), [], "the second batch runs");
        world.done(LaneId(2), batches[1].batch, Ok(()));
        assert_eq!(world.answers(), [(1, Served::TopK { k: begun.unwrap() }, LATE)]);
    }

    #[test]
    fn a_top_k_is_answered_with_the_best_that_came_back() {
        use Degradation::PredictedLate;
        use Policy::{Auto, TopK};
        for (policy, pairs, done, degraded, expected) in [
            (Auto, 5, 0, None, (Served::Fallback, LATE)),
            (Auto, 5, 3, None, (Served::TopK { k: 3 }, LATE)),
            (Auto, 5, 3, Some(PredictedLate), (Served::TopK { k: 3 }, Some(PredictedLate))),
            (Auto, 5, 5, Some(PredictedLate), (Served::TopK { k: 5 }, Some(PredictedLate))),
            (Auto, 10, 9, Some(PredictedLate), (Served::TopK { k: 9 }, Some(PredictedLate))),
            (Auto, 10, 10, Some(PredictedLate), (Served::Full, None)),
            (TopK, 5, 5, None, (Served::TopK { k: 5 }, None)),
            (TopK, 10, 10, None, (Served::TopK { k: 10 }, None)),
        ] {
            let mut world = world(Stage::TopK { k: pairs }, policy);
            score(&mut world, Tier::Primary, done);
            world.sched.job(JOB).degraded = degraded;
            let mut out = Vec::new();
            world.sched.answer_top_k(JOB, Degradation::PrimaryLate, &mut out);
            assert_eq!(
                now(&world, &out),
                Now::Answered(expected.0, expected.1),
                "{policy:?}, {done} of {pairs}"
            );
        }
    }

    /// Ranks job 1 of ten pairs on an idle primary, with this much time for them, and returns its state.
    fn ranked(top_k: Option<u32>, top_k_min: u32, time: impl Fn(&World) -> Option<Ns>) -> Now {
        let mut world = world(Stage::Ranking, Policy::Auto);
        world.sched.lanes.values_mut().for_each(|lane| lane.running.clear());
        world.sched.limits.top_k_min = top_k_min;
        world.sched.now = Ns(50 * MS);
        let time = time(&world);
        let job = world.sched.job(JOB);
        (job.top_k, job.deadline) = (top_k, time.map(|time| Ns(50 * MS) + time));
        let mut out = Vec::new();
        world.sched.choose_k(JOB, (0..PAIRS).collect(), &mut out);
        now(&world, &out)
    }

    #[test]
    fn the_primary_gets_as_many_of_the_best_as_surely_fit() {
        use Now::{Answered, In};
        let surely =
            |world: &World, k: usize| world.sched.models[TEACHER].predictor.surely(&Load::of(vec![100; k]));
        let top = |k| In(Stage::TopK { k }, None);
        let predicted_late = Answered(Served::Fallback, Some(Degradation::PredictedLate));
        // To the nanosecond.
        assert_eq!(ranked(None, 3, |world| Some(surely(world, 7))), top(7));
        assert_eq!(ranked(None, 3, |world| Some(surely(world, 7) - Ns(1))), top(6));
        // All, or as many as the request names.
        for (top_k, k) in [(None, 10), (Some(4), 4), (Some(100), 10)] {
            assert_eq!(ranked(top_k, 3, |_| None), top(k));
        }
        // Too few are not worthwhile, unless the request wants no more.
        assert_eq!(ranked(None, 3, |world| Some(surely(world, 3))), top(3));
        assert_eq!(ranked(None, 3, |world| Some(surely(world, 2))), predicted_late);
        assert_eq!(ranked(Some(2), 3, |world| Some(surely(world, 2))), top(2));
        assert_eq!(ranked(Some(1), 0, |world| Some(surely(world, 1))), top(1));
        assert_eq!(ranked(None, 0, |_| Some(Ns::ZERO)), predicted_late);
        // A busy lane leaves less time.
        let mut world = world(Stage::Ranking, Policy::Auto);
        let free = world.sched.lanes[PRIMARY].free_at(Ns::ZERO);
        assert!(free > Ns::ZERO);
        world.sched.job(JOB).deadline = Some(free + surely(&world, 5));
        world.sched.choose_k(JOB, (0..PAIRS).collect(), &mut Vec::new());
        assert_eq!(now(&world, &[]), top(5));
    }

    #[test]
    fn an_order_is_for_a_job_that_waits_for_it() {
        let mut world = world(FULL, Policy::Auto);
        world.step(Event::Ranked { job: JOB, order: (0..PAIRS).collect() });
        assert_eq!(now(&world, &[]), Now::In(FULL, None));
    }

    /// Whether all ten pairs are tried after a ranking on an idle or busy primary, if `fits` of them surely fit.
    fn tried(is_idle: bool, wanted: u32, fits: usize) -> (bool, u64) {
        let mut world = world(Stage::Ranking, Policy::Auto);
        if is_idle {
            world.sched.lanes[PRIMARY].running.clear();
        }
        world.sched.hedges = HedgeTokens::new(&Limits::default());
        let free = world.sched.lanes[PRIMARY].free_at(Ns::ZERO);
        let surely = world.sched.models[TEACHER].predictor.surely(&Load::of(vec![100; fits]));
        let job = world.sched.job(JOB);
        (job.top_k, job.deadline) = (Some(wanted), Some(free + surely));
        world.sched.choose_k(JOB, (0..PAIRS).collect(), &mut Vec::new());
        let job = &world.sched.jobs[&JOB];
        let k = if job.tried.primary { wanted } else { fits as u32 };
        assert_eq!(job.stage, Stage::TopK { k });
        (job.tried.primary, world.sched.stats.tries)
    }

    #[test]
    fn a_primary_that_idles_is_tried_on_more_than_surely_fit() {
        assert_eq!(tried(true, 10, 9), (true, 1));
        assert_eq!(tried(true, 9, 9), (false, 0), "all fit");
        assert_eq!(tried(false, 10, 9), (false, 0), "it is busy");
    }

    #[test]
    fn a_race_ends_with_the_primary_if_the_fallback_has_its_scores() {
        let mut world = world(Stage::Hedged, Policy::Auto);
        score(&mut world, Tier::Fallback, PAIRS);
        let mut out = Vec::new();
        world.sched.tier_failed(JOB, Tier::Primary, &mut out);
        let failed = Some(Degradation::PrimaryFailed);
        assert_eq!(now(&world, &out), Now::Answered(Served::Fallback, failed));
    }

    #[test]
    fn scores_of_a_tier_that_a_job_has_left_do_not_answer_it() {
        let mut world = World::new(config());
        let batch = dispatched(&world.arrive(1, 20, None, Policy::Auto)).unwrap().batch;
        world.sched.fall_back(JOB, Degradation::PrimaryLate, &mut Vec::new());
        world.done(PRIMARY, batch, Ok(()));
        assert_eq!(world.answers(), []);
    }
}
