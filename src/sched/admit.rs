//! Admission: full, top-k, fallback or refuse, by predicted finish times.

use super::event::{Action, Answer, Arrival};
use super::job::Job;
use super::lane::Health;
use super::stage::Stage;
use super::{Scheduler, Timer};
use crate::base::{DeviceNs, Ns, PerTier, TenantId, Tier, Used};
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
    pub(super) fn admit(&mut self, arrival: Arrival, out: &mut Vec<Action>) {
        self.stats.arrived += 1;
        self.hedges.earn();
        let job = Job::new(arrival, &self.limits, |tier, load| self.predictors[tier].predict(load));
        let id = job.id;
        if let Err(refusal) = self.door(&job) {
            self.stats.refused += 1;
            out.push(Action::Refuse { job: id, refusal });
            return;
        }
        if job.pairs() == 0 {
            self.stats.answered += 1;
            let answer =
                Answer { served: Served::Full, degraded: None, charged: Used::default(), compute: Ns::ZERO };
            out.push(Action::Answer { job: id, answer });
            return;
        }
        let mut prospects = PerTier::from_fn(|tier| self.prospect(&job, tier));
        let mut plan = self.plan(&job, prospects);
        if matches!(plan, Ok(Start { tried: Some(_), .. })) && !self.pay_for_try() {
            prospects = PerTier::from_fn(|tier| prospects[tier].without_a_try());
            plan = self.plan(&job, prospects);
        }
        self.pairs += u64::from(job.pairs());
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

    /// Reasons to refuse a job before any prediction.
    fn door(&mut self, job: &Job) -> Result<(), Refusal> {
        if self.draining {
            return Err(Refusal::Draining);
        }
        if job.deadline.is_some_and(|deadline| deadline <= self.now) {
            return Err(Refusal::BudgetSpent { needed: self.needed(job) });
        }
        let room = self.jobs.len() < self.limits.jobs_max
            && self.pairs + u64::from(job.pairs()) <= self.limits.pairs_max;
        if !room {
            return Err(Refusal::Overloaded { retry_after: self.drained_in() });
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
        let retry_after = self.drained_in();
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
        let tiers = tiers.iter().filter(|&&tier| !job.lengths[tier].is_empty() && self.is_available(tier));
        let alone = |&tier: &Tier| self.predictors[tier].p99(&job.loads[tier]);
        let spent = self.now.saturating_sub(job.arrived).saturating_add(self.limits.answer_ns_margin);
        tiers.map(alone).min().unwrap_or(Ns::ZERO).saturating_add(spent)
    }

    fn prospect(&self, job: &Job, tier: Tier) -> Prospect {
        if job.lengths[tier].is_empty() || !self.is_available(tier) {
            return Prospect::Unavailable;
        }
        let load = &job.loads[tier];
        let finish = self.finish(tier, job.tenant, job.due, load);
        // Without a deadline the wait for other jobs is bounded, but not the job's own time.
        let bound = || self.now.saturating_add(self.limits.wait_ns_max);
        let latest = job.deadline.unwrap_or_else(|| bound().saturating_add(self.predictors[tier].p99(load)));
        match finish <= latest {
            true => Prospect::InTime,
            false if job.deadline.is_some() && self.is_worth_a_try(tier, load, latest) => Prospect::WorthATry,
            false => Prospect::Late,
        }
    }

    /// Whether a tier has a working lane, or a probing lane without work to probe with.
    pub(super) fn is_available(&self, tier: Tier) -> bool {
        self.lanes_of(tier).any(|lane| lane.health == Health::Up)
            || (self.queues[tier].jobs() == 0
                && self.lanes_of(tier).any(|lane| lane.health == Health::Probing && lane.has_room()))
    }

    /// When a tier is predicted, with its margin, to finish some new work.
    pub(super) fn finish(&self, tier: Tier, tenant: TenantId, due: Ns, load: &Load) -> Ns {
        let predictor = &self.predictors[tier];
        let own = predictor.predict(load);
        let margin = predictor.p99(load).saturating_sub(own);
        let (mut lanes, mut free_at) = (0, Ns::MAX);
        for lane in self.lanes_of(tier).filter(|lane| matches!(lane.health, Health::Up | Health::Probing)) {
            lanes += 1;
            free_at = free_at.min(lane.free_at(self.now));
        }
        if lanes == 0 {
            return Ns::MAX;
        }
        let ahead = Ns(self.queues[tier].ahead(self.now, tenant, due, own).0 / lanes);
        free_at.saturating_add(ahead).saturating_add(own).saturating_add(margin)
    }

    /// When the backlog is predicted to be empty; at least a millisecond, to avoid a busy loop of retries.
    fn drained_in(&self) -> Ns {
        let drained = |tier: Tier| {
            let up = || self.lanes_of(tier).filter(|lane| lane.health == Health::Up);
            let free_at = up().map(|lane| lane.free_at(self.now)).min();
            let busy = free_at.map_or(Ns::ZERO, |at| at.saturating_sub(self.now));
            busy.saturating_add(Ns(self.queues[tier].work().0 / up().count().max(1) as u64))
        };
        Tier::ALL.map(drained).into_iter().max().unwrap_or(Ns::ZERO).max(Ns::from_millis(1))
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
        let retry_after = Ns(u64::try_from(missing / u128::from(per_second.max(1))).unwrap_or(u64::MAX));
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
}
