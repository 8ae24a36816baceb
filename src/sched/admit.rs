//! Admission: full, top-k, fallback or refuse, by predicted finish times.

use super::event::{Action, Answer, Arrival, Ask, Line};
use super::job::Job;
use super::lane::Health;
use super::model::Model;
use super::stage::Stage;
use super::{Scheduler, Timer};
use crate::base::{DeviceNs, ModelId, Ns, PerTier, TenantId, Tier, Used};
use crate::forecast::predict::Load;
use crate::rerank::{Degradation, Policy, Refusal, Served};

/// A tier's prospects for a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Prospect {
    InTime,
    /// Predicted late, but the tier is idle and the prediction is in doubt.
    WorthATry,
    Late,
    /// Not configured, or every lane is down.
    Unavailable,
}

impl Prospect {
    /// The same where no try can be paid for.
    fn without_a_try(self) -> Self {
        match self {
            Self::WorthATry => Self::Late,
            Self::InTime | Self::Late | Self::Unavailable => self,
        }
    }
}

/// How a job begins.
struct Start {
    stage: Stage,
    degraded: Option<Degradation>,
    /// A tier that is tried although it is predicted late.
    tried: Option<Tier>,
}

impl Scheduler {
    pub(super) fn admit(&mut self, mut arrival: Arrival, out: &mut Vec<Action>) {
        self.stats.arrived += 1;
        self.hedges.earn();
        // Models that were released meanwhile.
        arrival.primaries.retain(|ask| self.models.get(ask.model).is_some());
        arrival.fallback = arrival.fallback.filter(|ask| self.models.get(ask.model).is_some());
        let primaries = arrival.primaries.clone();
        let mut job =
            Job::new(arrival, &self.limits, |model, load| self.models[model].predictor.predict(load));
        let id = job.id;
        if let Err(refusal) = self.door(&job) {
            self.stats.refused += 1;
            out.push(Action::Refuse { job: id, refusal });
            return;
        }
        if job.pairs == 0 {
            self.stats.answered += 1;
            let answer = Answer {
                served: Served::Full,
                degraded: None,
                charged: Used::default(),
                compute: Ns::ZERO,
                line: job.line,
            };
            out.push(Action::Answer { job: id, answer });
            return;
        }
        self.choose_primary(&mut job, &primaries);
        let mut prospects = PerTier::from_fn(|tier| self.prospect(&job, tier));
        let mut plan = self.plan(&job, prospects);
        if matches!(plan, Ok(Start { tried: Some(_), .. })) && !self.pay_for_try() {
            prospects = PerTier::from_fn(|tier| prospects[tier].without_a_try());
            plan = self.plan(&job, prospects);
        }
        self.pairs += u64::from(job.pairs);
        self.count_inside(job.line, |inside| *inside += 1);
        let deadline = job.deadline;
        self.jobs.insert(id, job);
        match plan {
            Ok(Start { stage, degraded, tried }) => {
                let job = self.job(id);
                job.degraded = degraded;
                tried.into_iter().for_each(|tier| job.tried[tier] = true);
                self.start(id, stage);
            }
            Err(refusal) => return self.refuse(id, refusal, out),
        }
        if let Some(deadline) = deadline {
            self.set_timer(deadline, Timer::Deadline(id));
        }
    }

    /// Of several primaries, the first that fits the budget: on all candidates, else on the best of them. If none does, the
    /// preferred one that is available.
    fn choose_primary(&self, job: &mut Job, primaries: &[Ask]) {
        if primaries.len() < 2 {
            return;
        }
        let mut passed_over = None;
        for ask in primaries {
            job.set_primary(ask);
            let prospect = self.prospect(job, Tier::Primary);
            if prospect == Prospect::InTime || prospect != Prospect::Unavailable && self.fits_top_k(job) {
                job.passed_over = passed_over;
                return;
            }
            passed_over = passed_over.or(Some(match prospect {
                Prospect::Unavailable => Degradation::PrimaryUnavailable,
                Prospect::InTime | Prospect::WorthATry | Prospect::Late => Degradation::PredictedLate,
            }));
        }
        let available = primaries.iter().position(|ask| self.is_available(ask.model));
        let place = available.unwrap_or(0);
        job.set_primary(&primaries[place]);
        job.passed_over = (place > 0).then_some(Degradation::PrimaryUnavailable);
    }

    /// Whether the primary of a job with a budget is predicted to be in time with the best of its candidates, as many as a
    /// top-k has, after the fallback has scored all.
    fn fits_top_k(&self, job: &Job) -> bool {
        let (Some(primary), Some(deadline)) = (job.line.primary, job.deadline) else { return false };
        let is_allowed = matches!(job.policy, Policy::Auto | Policy::TopK);
        let Some(fallback) = job.line.fallback.filter(|_| is_allowed) else { return false };
        if self.prospect(job, Tier::Fallback) != Prospect::InTime {
            return false;
        }
        let ranked = self.finish(fallback, job.tenant, job.due, &job.loads.fallback);
        let free = self.finish(primary, job.tenant, job.due, &Load::default());
        // Which ones are the best is not known yet: the first ones stand for them.
        let k = job.top_k.unwrap_or(self.limits.top_k_default).min(job.pairs) as usize;
        let best = Load::behind(job.prefixes.primary, job.lengths.primary[..k].iter().copied());
        ranked.max(free).saturating_add(self.models[primary].predictor.surely(&best)) <= deadline
    }

    /// Reasons to refuse a job before any prediction.
    fn door(&mut self, job: &Job) -> Result<(), Refusal> {
        if self.draining {
            return Err(Refusal::Draining);
        }
        if job.deadline.is_some_and(|deadline| deadline <= self.now) {
            return Err(Refusal::BudgetSpent { needed: self.needed(job) });
        }
        let room = self.jobs.len() < self.limits.jobs_max
            && self.pairs + u64::from(job.pairs) <= self.limits.pairs_max;
        if !room {
            return Err(Refusal::Overloaded { retry_after: self.drained_in(&job.line) });
        }
        self.quotas[job.tenant.0 as usize].check(self.now)
    }

    /// The best stage to start in that the policy and the budget allow.
    fn plan(&self, job: &Job, prospect: PerTier<Prospect>) -> Result<Start, Refusal> {
        use Prospect::{InTime, Late, Unavailable, WorthATry};
        let start = |stage, degraded, tried| Ok(Start { stage, degraded, tried });
        let full = |tried| start(Stage::Full, None, tried);
        let staged = |then_top_k, degraded, tried| start(Stage::Fallback { then_top_k }, degraded, tried);
        let late = || Err(self.too_late(job));
        let on_fallback = |then_top_k, degraded| match prospect.fallback {
            InTime => staged(then_top_k, degraded, None),
            WorthATry => staged(then_top_k, degraded, Some(Tier::Fallback)),
            Late => late(),
            Unavailable => Err(Refusal::Unavailable),
        };
        match job.policy {
            Policy::Full => match prospect.primary {
                InTime => full(None),
                WorthATry => full(Some(Tier::Primary)),
                Late => late(),
                Unavailable => Err(Refusal::Unavailable),
            },
            Policy::Fallback => on_fallback(false, None),
            Policy::TopK => match prospect.primary {
                Unavailable => on_fallback(false, Some(Degradation::PrimaryUnavailable)),
                Late if job.deadline.is_none() => late(),
                InTime | WorthATry | Late => on_fallback(true, None),
            },
            Policy::Auto => match (prospect.primary, prospect.fallback) {
                (InTime, _) => full(None),
                // Without a budget nothing is late: it waits for the primary, or is refused.
                (Late, _) if job.deadline.is_none() => late(),
                // The fallback's scores are made first; then the primary may be tried (`choose_k`).
                (WorthATry | Late, InTime) => staged(true, Some(Degradation::PredictedLate), None),
                (WorthATry, WorthATry | Late | Unavailable) => full(Some(Tier::Primary)),
                (Late, WorthATry | Late) => on_fallback(true, Some(Degradation::PredictedLate)),
                (Late, Unavailable) => late(),
                (Unavailable, _) => on_fallback(false, Some(Degradation::PrimaryUnavailable)),
            },
        }
    }

    pub(super) fn too_late(&self, job: &Job) -> Refusal {
        let retry_after = self.drained_in(&job.line);
        let Some(deadline) = job.deadline else { return Refusal::Overloaded { retry_after } };
        let needed = self.needed(job);
        if job.arrived.saturating_add(needed) > deadline.saturating_add(self.limits.answer_ns_margin) {
            return Refusal::BudgetTooShort { needed };
        }
        Refusal::BudgetTooShortNow { retry_after }
    }

    /// The shortest budget that an idle server would meet: the time spent so far, the time of the fastest tier that is
    /// up and that the policy allows, and the answer's margin.
    fn needed(&self, job: &Job) -> Ns {
        let tiers = match job.policy {
            Policy::Full => &[Tier::Primary][..],
            Policy::Fallback | Policy::TopK => &[Tier::Fallback],
            Policy::Auto => &Tier::ALL,
        };
        let up = |&tier: &Tier| {
            job.line[tier].filter(|&model| self.is_available(model)).map(|model| (tier, model))
        };
        let alone = |(tier, model)| self.models[model].predictor.p99(&job.loads[tier]);
        let spent = self.now.saturating_sub(job.arrived).saturating_add(self.limits.answer_ns_margin);
        tiers.iter().filter_map(up).map(alone).min().unwrap_or(Ns::ZERO).saturating_add(spent)
    }

    fn prospect(&self, job: &Job, tier: Tier) -> Prospect {
        let Some(model) = job.line[tier].filter(|&model| self.is_available(model)) else {
            return Prospect::Unavailable;
        };
        let load = &job.loads[tier];
        let finish = self.finish(model, job.tenant, job.due, load);
        // Without a deadline the wait for other jobs is bounded, but not the job's own time.
        let bound = || self.now.saturating_add(self.limits.wait_ns_max);
        let latest =
            job.deadline.unwrap_or_else(|| bound().saturating_add(self.models[model].predictor.p99(load)));
        match finish <= latest {
            true => Prospect::InTime,
            // Never without a deadline: an idle tier finishes within the bound.
            false if self.is_worth_a_try(model, load, latest) => Prospect::WorthATry,
            false => Prospect::Late,
        }
    }

    /// When a model is predicted, with its margin, to finish some new work.
    pub(super) fn finish(&self, model: ModelId, tenant: TenantId, due: Ns, load: &Load) -> Ns {
        let Model { queue, predictor, .. } = &self.models[model];
        let own = predictor.predict(load);
        let margin = predictor.p99(load).saturating_sub(own);
        let (mut lanes, mut free_at) = (0, Ns::MAX);
        for lane in self.working_lanes(model) {
            lanes += 1;
            free_at = free_at.min(lane.free_at(self.now));
        }
        if lanes == 0 {
            return Ns::MAX;
        }
        let ahead = Ns(queue.ahead(self.now, tenant, due, own).0 / lanes);
        free_at.saturating_add(ahead).saturating_add(own).saturating_add(margin)
    }

    /// When the backlog of a job's models is predicted to be empty; at least a millisecond, to avoid a busy loop of retries.
    fn drained_in(&self, line: &Line) -> Ns {
        let drained = |model: ModelId| {
            let up = || self.lanes_of(model).filter(|lane| lane.health == Health::Up);
            let free_at = up().map(|lane| lane.free_at(self.now)).min();
            let busy = free_at.map_or(Ns::ZERO, |at| at.saturating_sub(self.now));
            busy.saturating_add(Ns(self.models[model].queue.work().0 / up().count().max(1) as u64))
        };
        Tier::ALL
            .into_iter()
            .filter_map(|tier| line[tier])
            .map(drained)
            .max()
            .unwrap_or(Ns::ZERO)
            .max(Ns::from_millis(1))
    }
}

/// A tenant's quota of device time: a token bucket that holds one second's worth.
#[derive(Debug)]
pub(super) struct Quota {
    per_second: Option<DeviceNs>,
    balance: i64,
    refilled: Ns,
}

impl Quota {
    pub fn new(per_second: Option<DeviceNs>) -> Self {
        Self { per_second, balance: per_second.map_or(0, |quota| quota.0 as i64), refilled: Ns::ZERO }
    }

    fn check(&mut self, now: Ns) -> Result<(), Refusal> {
        let Some(DeviceNs(per_second)) = self.per_second else { return Ok(()) };
        let earned = u128::from(now.saturating_sub(self.refilled).0) * u128::from(per_second) / 1_000_000_000;
        let earned = i64::try_from(earned).unwrap_or(i64::MAX);
        if earned > 0 {
            self.balance = self.balance.saturating_add(earned).min(per_second as i64);
            self.refilled = now;
        }
        if self.balance > 0 {
            return Ok(());
        }
        let missing = u128::from(self.balance.unsigned_abs() + 1) * 1_000_000_000;
        let retry_after =
            Ns(u64::try_from(missing.div_ceil(u128::from(per_second.max(1)))).unwrap_or(u64::MAX));
        Err(Refusal::QuotaExceeded { retry_after })
    }

    /// Subtracts measured device time.
    pub fn spend(&mut self, device: DeviceNs) {
        if self.per_second.is_some() {
            self.balance = self.balance.saturating_sub(device.0 as i64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::DeviceId;
    use crate::sched::config::{Config, LaneConfig};
    use crate::sched::event::{Event, Fault, JobId};
    use crate::sched::tests::{
        FALLBACK, MS, PRIMARY, STUDENT, TEACHER, THIRD, World, config, config_without_tries, dispatched,
        dispatched_to,
    };

    #[test]
    fn a_quota_is_a_bucket_of_one_second_and_says_when_to_retry() {
        let second = |seconds: u64| Ns::from_millis(1_000 * seconds);
        let mut quota = Quota::new(Some(DeviceNs(1_000)));
        quota.spend(DeviceNs(999));
        assert_eq!(quota.check(Ns::ZERO), Ok(()));
        quota.spend(DeviceNs(1));
        // One nanosecond of device time is earned in a millisecond.
        let refused = |retry_after| Err(Refusal::QuotaExceeded { retry_after });
        assert_eq!(quota.check(Ns::ZERO), refused(Ns::from_millis(1)));
        quota.spend(DeviceNs(4));
        assert_eq!(quota.check(Ns::ZERO), refused(Ns::from_millis(5)));
        // Checks before a nanosecond is earned lose nothing.
        (0..10).for_each(|tenth| assert!(quota.check(Ns(99_999 * tenth)).is_err()));
        assert_eq!(quota.check(Ns::from_millis(5)), Ok(()));
        // After a long pause there is a second's worth and no more.
        assert_eq!(quota.check(second(100)), Ok(()));
        quota.spend(DeviceNs(1_000));
        assert_eq!(quota.check(second(100)), refused(Ns::from_millis(1)));
        let mut none = Quota::new(None);
        none.spend(DeviceNs(1_000));
        assert_eq!(none.check(Ns::ZERO), Ok(()));
    }

    const LINE: Line = PerTier { primary: Some(TEACHER), fallback: Some(STUDENT) };
    const DOWN: Health = Health::Resting { until: Ns::MAX };

    /// Two primary lanes and a fallback lane.
    fn config_of_three() -> Config {
        let mut config = config_without_tries();
        config.lanes.push(LaneConfig { on: DeviceId(2), ..config.lanes[0].clone() });
        config
    }

    fn load(pairs: usize) -> Load {
        Load::of(vec![100; pairs])
    }

    #[test]
    fn a_tier_is_available_if_a_lane_is_up_or_can_be_probed_now() {
        for (health, busy, waiting, available) in [
            (Health::Up, false, false, true),
            (Health::Up, true, true, true),
            (Health::Probing, false, false, true),
            (Health::Probing, true, false, false),
            (Health::Probing, false, true, false),
            (Health::Loading { rest_until: Ns::ZERO }, false, false, false),
            (DOWN, false, false, false),
        ] {
            let mut world = World::new(config_of_three());
            world.arrive(1, 20, None, Policy::Full);
            if waiting {
                world.arrive(2, 10, None, Policy::Full);
            }
            let lanes = &mut world.sched.lanes;
            lanes[PRIMARY].health = health;
            lanes[THIRD].health = DOWN;
            if !busy {
                lanes[PRIMARY].running.clear();
            }
            let found = world.sched.is_available(TEACHER);
            assert_eq!(found, available, "{health:?}, busy {busy}, waiting {waiting}");
        }
    }

    #[test]
    fn a_tier_finishes_after_its_first_free_lane_and_its_part_of_the_queue() {
        let mut world = World::new(config_of_three());
        world.arrive(8, 10, None, Policy::Full);
        world.now = Ns(4 * MS);
        world.arrive(9, 10, None, Policy::Full);
        let own = world.sched.models[TEACHER].predictor.p99(&load(4));
        let finish = |world: &World| world.sched.finish(TEACHER, TenantId(0), Ns::MAX, &load(4));
        assert_eq!(finish(&world), Ns(10 * MS) + own, "the first lane is free at 10 ms");
        world.arrive(1, 10, None, Policy::Full);
        let waiting = world.sched.models[TEACHER].queue.work().0;
        assert_eq!(finish(&world), Ns(10 * MS + waiting / 2) + own);
        // Work that is due later is not ahead.
        assert_eq!(world.sched.finish(TEACHER, TenantId(0), Ns::ZERO, &load(4)), Ns(10 * MS) + own);
        world.sched.lanes[PRIMARY].health = DOWN;
        assert_eq!(finish(&world), Ns(14 * MS + waiting) + own, "a lane that is down does not count");
        world.sched.lanes[PRIMARY].health = Health::Probing;
        assert_eq!(finish(&world), Ns(10 * MS + waiting / 2) + own);
        world.sched.lanes.values_mut().for_each(|lane| lane.health = DOWN);
        assert_eq!(finish(&world), Ns::MAX);
    }

    #[test]
    fn a_refused_client_retries_when_the_slowest_tier_is_predicted_to_be_empty() {
        let mut world = World::new(config_of_three());
        assert_eq!(world.sched.drained_in(&LINE), Ns(MS), "at once is a millisecond");
        world.arrive(8, 10, None, Policy::Full);
        world.now = Ns(4 * MS);
        world.arrive(9, 10, None, Policy::Full);
        assert_eq!(world.sched.drained_in(&LINE), Ns(6 * MS), "the first lane is free at 10 ms");
        world.arrive(1, 10, None, Policy::Full);
        let waiting = world.sched.models[TEACHER].queue.work().0;
        assert_eq!(world.sched.drained_in(&LINE), Ns(6 * MS + waiting / 2));
        world.sched.lanes[PRIMARY].health = DOWN;
        assert_eq!(
            world.sched.drained_in(&LINE),
            Ns(10 * MS + waiting),
            "a lane that is down does not count"
        );
        world.sched.lanes[THIRD].health = DOWN;
        assert_eq!(world.sched.drained_in(&LINE), Ns(waiting));
    }

    #[test]
    fn what_happens_at_the_door_is_counted() {
        let mut world = World::new(config());
        world.arrive(1, 0, None, Policy::Auto);
        world.arrive(2, 1, Some(0), Policy::Auto);
        world.arrive(3, 1, None, Policy::Auto);
        let stats = world.sched.stats();
        assert_eq!((stats.arrived, stats.answered, stats.refused), (3, 1, 1));
        // An arrival earns a part of a hedge.
        let mut config = config();
        (config.limits.hedges_burst, config.limits.hedges_permille) = (1, 500);
        let mut world = World::new(config);
        assert!(world.sched.hedges.spend());
        for (job, is_earned) in [(1, false), (2, true)] {
            world.arrive(job, 1, None, Policy::Full);
            assert_eq!(world.sched.hedges.spend(), is_earned);
        }
    }

    #[test]
    fn without_the_primary_a_request_for_less_is_answered_by_the_fallback_with_the_reason() {
        for policy in [Policy::TopK, Policy::Auto] {
            let mut world = World::new(config());
            world.sched.lanes[PRIMARY].health = DOWN;
            let batch = dispatched_to(&world.arrive(1, 4, None, policy), FALLBACK).batch;
            // It comes up too late to be asked.
            world.sched.lanes[PRIMARY].health = Health::Up;
            world.done(FALLBACK, batch, Ok(()));
            assert_eq!(
                world.answers(),
                [(1, Served::Fallback, Some(Degradation::PrimaryUnavailable))],
                "{policy:?}"
            );
        }
    }

    #[test]
    fn a_top_k_waits_for_the_primary_within_its_budget_or_the_bound() {
        let answer = |budget_ms, wait_ms| {
            let mut config = config_without_tries();
            config.limits.wait_ns_max = Ns::from_millis(wait_ms);
            let mut world = World::new(config);
            world.arrive(9, 10, None, Policy::Full);
            world.arrive(1, 10, budget_ms, Policy::TopK);
            world.refusals().pop().map(|(_, refusal)| refusal)
        };
        assert_eq!(answer(None, 100), None);
        assert!(
            matches!(answer(None, 5), Some(Refusal::Overloaded { .. })),
            "it has no budget to be late for"
        );
        assert_eq!(answer(Some(20), 5), None, "the primary is late, and scores as many as fit");
    }

    #[test]
    fn a_tier_that_idles_finishes_any_work_within_the_bound() {
        let mut config = config();
        config.limits.wait_ns_max = Ns::ZERO;
        let mut world = World::new(config);
        world.arrive(1, 2_000, None, Policy::Full);
        assert_eq!((world.refusals(), world.sched.stats().tries), (vec![], 0));
    }

    #[test]
    fn a_quota_of_nothing_refuses_everything() {
        let mut quota = Quota::new(Some(DeviceNs(0)));
        assert_eq!(quota.check(Ns(5)), Err(Refusal::QuotaExceeded { retry_after: Ns(1_000_000_000) }));
        let mut quota = Quota::new(Some(DeviceNs(3)));
        quota.spend(DeviceNs(3));
        // A nanosecond of device time takes a third of a second, and is there when the retry comes.
        assert_eq!(quota.check(Ns::ZERO), Err(Refusal::QuotaExceeded { retry_after: Ns(333_333_334) }));
        assert!(quota.check(Ns(333_333_333)).is_err());
        assert!(quota.check(Ns(333_333_334)).is_ok());
    }

    #[test]
    fn a_lane_that_is_probed_by_other_work_is_no_prospect() {
        let mut world = World::new(config());
        let failing = dispatched(&world.arrive(9, 1, None, Policy::Full)).unwrap();
        world.done(PRIMARY, failing.batch, Err(Fault::Failed));
        world.step(Event::LaneUp { lane: PRIMARY });
        let probe = dispatched_to(&world.wait(150), PRIMARY);
        assert_eq!(probe.slices[0].job, JobId(9));
        let next = world.arrive(1, 4, None, Policy::Auto);
        world.run_all(next);
        assert_eq!(world.answers(), [(1, Served::Fallback, Some(Degradation::PrimaryUnavailable))]);
    }
}
