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
use crate::base::{ModelId, Ns, Tier};
use crate::forecast::predict::Load;
use crate::rerank::{Degradation, Policy};

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
        let Some(fallback) = job.line.fallback.filter(|_| job.policy == Policy::Auto) else { return };
        let load = &job.loads.fallback;
        // A fallback that is down may be up by then.
        let takes = match self.is_available(fallback) {
            true => self.finish(fallback, job.tenant, job.due, load).saturating_sub(self.now),
            false => self.models[fallback].predictor.p99(load),
        };
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
            self.job(id).is_hedged = true;
            self.start(id, Stage::Hedged);
        }
    }

    /// When the primary is predicted, with margin, to finish a job that it has.
    fn primary_ends(&self, id: JobId) -> Ns {
        let job = &self.jobs[&id];
        let primary = job.line.primary.expect("a job on the primary has one");
        let part = &job.parts.primary;
        let running = (self.lanes_of(primary).flat_map(|lane| &lane.running))
            .filter(|batch| batch.members.iter().any(|member| member.slice.job == id))
            // A batch that is already overdue gives no information about its end.
            .map(|batch| if batch.ends_p99 <= self.now { Ns::MAX } else { batch.ends_p99 })
            .max()
            .unwrap_or(Ns::ZERO);
        if part.todo.is_empty() {
            return running;
        }
        let mut rest = Load::default();
        job.add_waiting(Tier::Primary, &mut rest);
        // `finish` counts the job's own queued work as ahead of it, so its part of that is subtracted.
        let finish = self.finish(primary, job.tenant, job.due, &rest);
        let lanes = self.working_lanes(primary).count().max(1) as u64;
        running.max(finish.saturating_sub(Ns(part.work.0 / lanes)))
    }

    /// Whether a model has an idle lane and an empty queue.
    fn is_idle(&self, model: ModelId) -> bool {
        self.models[model].queue.jobs() == 0
            && self.lanes_of(model).any(|lane| lane.health == Health::Up && lane.running.is_empty())
    }

    /// Whether a model that is predicted to miss `latest` is idle, and meets it by the optimistic bound of the prediction.
    pub(super) fn is_worth_a_try(&self, model: ModelId, load: &Load, latest: Ns) -> bool {
        self.is_idle(model)
            && self.now.saturating_add(self.models[model].predictor.at_best(load, self.now)) <= latest
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
        job.add_waiting(tier, &mut load);
        let model = job.line[tier].expect("a job that a batch takes has its model");
        if starts.saturating_add(self.models[model].predictor.p99(&load)) <= deadline {
            return false;
        }
        let is_certain = starts.saturating_add(part.work) > deadline;
        self.predicted_late(id, tier, is_certain, starts, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::DeviceId;
    use crate::sched::config::LaneConfig;
    use crate::sched::event::{Event, Fault};
    use crate::sched::tests::{
        FALLBACK, MS, PRIMARY, TEACHER, THIRD, World, config, config_without_tries, dispatched,
        dispatched_to, model_of,
    };

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
        // To the thousandth: neither a full bucket nor a token that was given back leaves a rest.
        let mut tokens =
            HedgeTokens::new(&Limits { hedges_burst: 2, hedges_permille: 1, ..Limits::default() });
        for expected in [2, 1] {
            assert_eq!(spend(&mut tokens), expected);
            (0..999).for_each(|_| tokens.earn());
            assert_eq!(spend(&mut tokens), 0);
            tokens.earn();
            assert_eq!(spend(&mut tokens), 1);
            tokens.give_back();
        }
    }

    const JOB: JobId = JobId(1);

    fn p99(world: &World, tier: Tier, pairs: usize) -> Ns {
        world.sched.predictor(model_of(tier)).p99(&Load::of(vec![100; pairs]))
    }

    #[test]
    fn the_timer_of_a_hedge_is_set_for_the_last_moment_of_the_fallback() {
        let margin = Limits::default().answer_ns_margin;
        for (batch_ms, expected) in [(10, None), (1_000, Some(Ns(50 * MS + 1)))] {
            let mut config = config();
            config.limits.batch_ns_max = Ns::from_millis(batch_ms);
            let mut world = World::new(config);
            world.now = Ns(50 * MS);
            world.arrive(1, 10, Some(100), Policy::Auto);
            let last =
                Ns(150 * MS) - margin - Ns(batch_ms * MS).min(Ns(99 * MS)) - p99(&world, Tier::Fallback, 10);
            assert_eq!(world.sched.next_wake(), Some(expected.unwrap_or(last)), "{batch_ms}");
        }
    }

    #[test]
    fn a_fallback_that_comes_up_after_the_arrival_is_a_hedge_too() {
        let mut world = World::new(config());
        let failing = dispatched(&world.arrive(9, 1, None, Policy::Fallback)).unwrap();
        world.done(FALLBACK, failing.batch, Err(Fault::Failed));
        world.arrive(1, 10, Some(1_000), Policy::Auto);
        world.step(Event::LaneUp { lane: FALLBACK });
        let probe = world.wait(150);
        world.run_all(probe);
        let hedge = dispatched_to(&world.wait(836), FALLBACK);
        assert_eq!(hedge.slices[0].job, JOB);
    }

    #[test]
    fn a_hedge_waits_while_the_primary_is_predicted_in_time() {
        let mut world = World::new(config());
        world.arrive(9, 10, None, Policy::Full);
        world.arrive(1, 10, Some(30), Policy::Auto);
        world.now = Ns(10 * MS);
        world.end(PRIMARY);
        let ends = world.now + p99(&world, Tier::Primary, 10);
        assert_eq!(world.sched.primary_ends(JOB), ends);
        // At the last moment of the fallback the primary is still expected.
        world.now = Ns(16 * MS);
        assert_eq!(dispatched(&world.step(Event::Tick)), None);
        world.now = Ns(20 * MS);
        assert_eq!(world.sched.next_wake(), Some(ends));
        // At its predicted end it is overdue, and nothing says by how much.
        world.now = ends;
        let hedge = world.step(Event::Tick);
        assert_eq!(dispatched_to(&hedge, FALLBACK).slices[0].job, JOB);
        assert_eq!(world.sched.stats().hedges, 1);
        assert_eq!(world.sched.primary_ends(JOB), Ns::MAX);
    }

    #[test]
    fn a_primary_that_is_expected_at_the_deadline_is_trusted() {
        for (late, hedges) in [(0, 0), (1, 1)] {
            let mut world = World::new(config());
            world.arrive(1, 10, Some(100), Policy::Auto);
            world.sched.job(JOB).deadline = Some(p99(&world, Tier::Primary, 10) - Ns(late));
            world.sched.hedge(JOB, &mut Vec::new());
            assert_eq!(world.sched.stats().hedges, hedges, "{late}");
        }
    }

    #[test]
    fn only_a_job_on_the_primary_that_may_fall_back_is_hedged() {
        type Set = fn(&mut World);
        let stage: Set = |world| world.sched.job(JOB).stage = Stage::Fallback { then_top_k: false };
        let policy: Set = |world| world.sched.job(JOB).policy = Policy::Full;
        let nothing: Set = |_| {};
        for (name, set, hedges) in [("", nothing, 1), ("stage", stage, 0), ("policy", policy, 0)] {
            let mut world = World::new(config());
            world.arrive(1, 10, Some(100), Policy::Auto);
            let timers = world.sched.timers.len();
            world.sched.job(JOB).deadline = Some(Ns(1));
            set(&mut world);
            world.sched.hedge(JOB, &mut Vec::new());
            assert_eq!((world.sched.stats().hedges, world.sched.timers.len()), (hedges, timers), "{name}");
        }
    }

    #[test]
    fn a_primary_ends_with_the_last_batch_of_the_job_or_with_what_waits() {
        let mut config = config();
        config.lanes.push(LaneConfig { on: DeviceId(2), ..config.lanes[0].clone() });
        let mut world = World::new(config);
        // Job 1 starts at 4 ms on the second lane and at 10 ms on the first one.
        world.arrive(9, 10, None, Policy::Full);
        world.now = Ns(4 * MS);
        world.arrive(1, 15, Some(500), Policy::Auto);
        assert_eq!(world.sched.jobs[&JOB].parts.primary.running, 10);
        // Five pairs wait, for the first lane.
        let ends = Ns(10 * MS) + p99(&world, Tier::Primary, 5);
        let rounding = Ns(2);
        let found = world.sched.primary_ends(JOB);
        assert!(found >= ends && found <= ends + rounding, "{found:?}, {ends:?}");
        world.now = Ns(10 * MS);
        world.end(PRIMARY);
        assert_eq!(world.sched.jobs[&JOB].parts.primary.running, 15);
        assert_eq!(world.sched.primary_ends(JOB), Ns(10 * MS) + p99(&world, Tier::Primary, 5));
        // A batch with other jobs too ends for each of them, and no other batch matters.
        world.arrive(2, 10, Some(500), Policy::Auto);
        let mine = world.sched.lanes[PRIMARY].running.front_mut().unwrap();
        mine.ends_p99 = Ns(12 * MS);
        assert_eq!(world.sched.primary_ends(JOB), Ns(4 * MS) + p99(&world, Tier::Primary, 10));
        assert!(world.sched.primary_ends(JobId(2)) > Ns(20 * MS));
    }

    #[test]
    fn a_tier_is_tried_if_a_lane_idles_and_the_optimistic_bound_is_in_time() {
        let mut config = config();
        config.lanes.push(LaneConfig { on: DeviceId(2), ..config.lanes[0].clone() });
        let load = Load::of([100; 10]);
        let tried = |set: &dyn Fn(&mut World), short: u64| {
            let mut world = World::new(config.clone());
            world.arrive(9, 10, None, Policy::Full);
            world.now = Ns(MS);
            world.step(Event::Tick);
            set(&mut world);
            let latest =
                world.now + world.sched.models[TEACHER].predictor.at_best(&load, world.now) - Ns(short);
            world.sched.is_worth_a_try(TEACHER, &load, latest)
        };
        assert!(tried(&|_| {}, 0), "one of two lanes is idle");
        assert!(!tried(&|_| {}, 1), "too late by a nanosecond");
        assert!(!tried(&|world| world.sched.lanes[THIRD].health = Health::Probing, 0), "it is not up");
        let busy = |world: &mut World| {
            world.arrive(8, 10, None, Policy::Full);
        };
        assert!(!tried(&busy, 0), "both lanes are busy");
        let queued = |world: &mut World| {
            world.arrive(8, 30, None, Policy::Full);
            world.sched.lanes[THIRD].running.clear();
        };
        assert!(!tried(&queued, 0), "work waits");
    }

    #[test]
    fn a_try_returns_its_token_if_it_is_complete_and_in_time() {
        for (tried, done, is_late, expected) in
            [(true, 10, false, 1), (true, 9, false, 0), (true, 10, true, 0), (false, 10, false, 0)]
        {
            let mut world = World::new(config());
            world.arrive(1, 10, None, Policy::Auto);
            let mut job = world.sched.jobs.remove(&JOB).unwrap();
            job.tried.primary = tried;
            job.parts.primary.done.push(0..done);
            world.sched.settle_tries(&job, is_late);
            assert_eq!(world.sched.stats().tries_in_time, expected, "{tried}, {done}, {is_late}");
        }
        let mut world = World::new(config_without_tries());
        assert_eq!((world.sched.pay_for_try(), world.sched.stats().tries), (false, 0), "there is no token");
    }

    #[test]
    fn a_job_leaves_its_queue_if_it_is_late_to_the_nanosecond() {
        // Three pairs are in the batch before; ten of job 1 wait, and may fall back if they have not begun.
        let before = Load::of([100; 3]);
        let starts = Ns(20 * MS);
        for (policy, short_of_margin, short_of_mean, leaves) in [
            (Policy::Auto, Some(0), None, false),
            (Policy::Auto, Some(1), None, true),
            (Policy::Full, Some(1), None, false),
            (Policy::Full, None, Some(0), false),
            (Policy::Full, None, Some(1), true),
        ] {
            let mut world = World::new(config());
            world.arrive(9, 10, None, Policy::Full);
            world.arrive(1, 10, None, policy);
            let work = world.sched.jobs[&JOB].parts.primary.work;
            let with_margin = short_of_margin.map(|short| p99(&world, Tier::Primary, 13) - Ns(short));
            let deadline = starts + with_margin.unwrap_or_else(|| work - Ns(short_of_mean.unwrap()));
            world.sched.job(JOB).deadline = Some(deadline);
            let left = world.sched.give_up_late(JOB, Tier::Primary, (starts, before), &mut Vec::new());
            assert_eq!(left, leaves, "{policy:?}, {short_of_margin:?}, {short_of_mean:?}");
        }
    }

    #[test]
    fn only_batches_with_pairs_of_the_job_count_for_its_end() {
        let mut config = config();
        config.lanes.push(LaneConfig { on: DeviceId(2), ..config.lanes[0].clone() });
        let mut world = World::new(config);
        world.arrive(1, 2, Some(500), Policy::Auto);
        world.arrive(2, 10, Some(500), Policy::Auto);
        assert_eq!(world.sched.primary_ends(JOB), p99(&world, Tier::Primary, 2));
        // A batch of two jobs ends for both.
        let mut world = World::new(config_without_tries());
        world.arrive(9, 1, None, Policy::Full);
        world.arrive(1, 2, Some(500), Policy::Auto);
        world.arrive(2, 3, Some(500), Policy::Auto);
        world.end(PRIMARY);
        for job in [1, 2] {
            assert_eq!(world.sched.primary_ends(JobId(job)), p99(&world, Tier::Primary, 5));
        }
    }
}
