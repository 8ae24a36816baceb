//! The results of a run.

use crate::base::{DeviceNs, Ns, PerTier, TenantId};
use crate::rerank::Served;
use crate::sched::{Answer, JobId};
use std::collections::BTreeMap;

/// Counts and times of one run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Requests that arrived.
    pub requests: u64,
    /// Answers by the primary on all candidates.
    pub full: u64,
    /// Top-k answers.
    pub top_k: u64,
    /// Top-k answers by `k`.
    pub top_ks: BTreeMap<u32, u64>,
    /// Answers by the fallback.
    pub fallback: u64,
    /// Answers after their budget.
    pub late: u64,
    /// Requests refused.
    pub refused: u64,
    /// Requests that their client cancelled.
    pub cancelled: u64,
    /// Versions of models that took the place of another.
    pub swaps: u64,
    /// Models that were evicted.
    pub evictions: u64,
    /// Busy device time.
    pub busy: PerTier<DeviceNs>,
    /// The part of the busy time that no response includes.
    pub discarded: DeviceNs,
    /// Idle device time.
    pub idle: DeviceNs,
    /// From the start to the last answer.
    pub elapsed: Ns,
    /// The results by tenant.
    pub tenants: Vec<Tenant>,
    /// Every answer, in order.
    pub answers: Vec<Seen>,
}

/// One answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    /// The request's number, in order of arrival from 0.
    pub job: JobId,
    /// When it arrived.
    pub arrived: Ns,
    /// The time that the primary alone would need for it.
    pub own: Ns,
    /// From arrival to answer.
    pub latency: Ns,
    /// Which scores the answer has.
    pub served: Served,
    /// Whether its budget had passed.
    pub is_late: bool,
}

/// The results of one tenant.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tenant {
    /// Latencies of its answers; sorted at the end of the run.
    pub latencies: Vec<Ns>,
    /// Its answers within their budgets.
    pub in_budget: u64,
    /// Its requests refused.
    pub refused: u64,
}

impl Report {
    pub(super) fn new(tenants: usize) -> Self {
        Self { tenants: vec![Tenant::default(); tenants], ..Self::default() }
    }

    pub(super) fn answered(&mut self, tenant: TenantId, seen: Seen, answer: &Answer) {
        let count = match answer.served {
            Served::Full => &mut self.full,
            Served::TopK { k } => {
                *self.top_ks.entry(k).or_default() += 1;
                &mut self.top_k
            }
            Served::Fallback => &mut self.fallback,
        };
        *count += 1;
        self.late += u64::from(seen.is_late);
        self.answers.push(seen);
        let tenant = &mut self.tenants[tenant.0 as usize];
        tenant.latencies.push(seen.latency);
        tenant.in_budget += u64::from(!seen.is_late);
    }

    pub(super) fn refused(&mut self, tenant: TenantId) {
        self.refused += 1;
        self.tenants[tenant.0 as usize].refused += 1;
    }

    pub(super) fn finish(&mut self, now: Ns) {
        self.elapsed = now;
        self.tenants.iter_mut().for_each(|tenant| tenant.latencies.sort_unstable());
    }

    /// Answers within their budgets per second.
    pub fn goodput(&self) -> f64 {
        let in_budget: u64 = self.tenants.iter().map(|tenant| tenant.in_budget).sum();
        in_budget as f64 * 1e9 / self.elapsed.0.max(1) as f64
    }

    /// A quantile of the stretch of all answers: latency divided by the time that the primary alone would need. Zero
    /// without answers.
    pub fn stretch(&self, share: f64) -> f64 {
        let stretch = |seen: &Seen| seen.latency.0 as f64 / seen.own.0.max(1) as f64;
        let mut all: Vec<f64> = self.answers.iter().map(stretch).collect();
        all.sort_unstable_by(f64::total_cmp);
        nearest_rank(&all, share).copied().unwrap_or(0.0)
    }

    /// Discarded device time as a fraction of busy device time.
    pub fn waste(&self) -> f64 {
        let busy = self.busy.primary + self.busy.fallback;
        self.discarded.0 as f64 / busy.0.max(1) as f64
    }

    /// A quantile of the latencies of all answers.
    pub fn quantile(&self, share: f64) -> Ns {
        let mut all: Vec<Ns> = self.tenants.iter().flat_map(|tenant| &tenant.latencies).copied().collect();
        all.sort_unstable();
        quantile(&all, share)
    }
}

impl Tenant {
    /// A quantile of the latencies of its answers.
    pub fn quantile(&self, share: f64) -> Ns {
        quantile(&self.latencies, share)
    }
}

/// A quantile of ascending values by nearest rank; zero without values.
pub fn quantile(ascending: &[Ns], share: f64) -> Ns {
    nearest_rank(ascending, share).copied().unwrap_or(Ns::ZERO)
}

fn nearest_rank<T>(ascending: &[T], share: f64) -> Option<&T> {
    let rank = (share * ascending.len() as f64).ceil() as usize;
    ascending.get(rank.clamp(1, ascending.len().max(1)) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Used;

    #[test]
    fn a_quantile_is_the_nearest_rank() {
        let values = [10, 20, 30, 40].map(Ns);
        for (share, expected) in
            [(0.0, 10), (0.25, 10), (0.26, 20), (0.5, 20), (0.75, 30), (0.76, 40), (0.99, 40), (1.0, 40)]
        {
            assert_eq!(quantile(&values, share), Ns(expected), "{share}");
        }
        assert_eq!(quantile(&[], 0.5), Ns::ZERO);
        assert_eq!(quantile(&[Ns(7)], 0.99), Ns(7));
    }

    #[test]
    fn answers_are_counted_by_tier_tenant_and_budget() {
        let mut report = Report::new(2);
        let (top_k, fallback) = (Served::TopK { k: 5 }, Served::Fallback);
        for (job, (tenant, served, latency, own, is_late)) in (0..).zip([
            (0, Served::Full, 30, 10, false),
            (0, top_k, 10, 10, false),
            (1, top_k, 20, 5, true),
            (1, fallback, 40, 0, false),
        ]) {
            let (arrived, own, latency) = (Ns(1), Ns(own), Ns(latency));
            let seen = Seen { job: JobId(job), arrived, own, latency, served, is_late };
            let (charged, compute, line) = (Used::default(), Ns::ZERO, PerTier::default());
            let answer = Answer { served, degraded: None, charged, compute, line };
            report.answered(TenantId(tenant), seen, &answer);
        }
        report.refused(TenantId(1));
        report.finish(Ns(2_000_000_000));
        assert_eq!(
            (report.full, report.top_k, report.fallback, report.late, report.refused),
            (1, 2, 1, 1, 1)
        );
        assert_eq!(report.top_ks, [(5, 2)].into());
        let tenants: Vec<_> =
            report.tenants.iter().map(|t| (t.in_budget, t.refused, t.quantile(0.5))).collect();
        assert_eq!(tenants, [(2, 0, Ns(10)), (1, 1, Ns(20))]);
        assert_eq!((report.elapsed, report.answers.len()), (Ns(2_000_000_000), 4));
        assert_eq!(report.goodput(), 1.5, "three in two seconds");
        assert_eq!((report.quantile(0.5), report.quantile(1.0)), (Ns(20), Ns(40)));
        // 1, 3, 4, and 40 without any time of its own.
        assert_eq!([0.25, 0.5, 0.75, 1.0].map(|share| report.stretch(share)), [1.0, 3.0, 4.0, 40.0]);
        assert_eq!((Report::new(1).stretch(0.5), Report::new(1).goodput()), (0.0, 0.0));
        report.busy = PerTier { primary: DeviceNs(30), fallback: DeviceNs(10) };
        report.discarded = DeviceNs(4);
        assert_eq!((report.waste(), Report::new(1).waste()), (0.1, 0.0));
    }
}
