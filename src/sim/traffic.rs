//! The clients of a scenario: arrival times, requests and cancellations.

use super::scenario::{Arrivals, Role, Scenario};
use crate::base::{ModelId, Ns, TenantId, Tier};
use crate::sched::{Arrival, Ask, JobId};
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, Exp1, Geometric, LogNormal};
use rand_pcg::Pcg64;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Generates a scenario's requests in order of arrival.
pub(super) struct Traffic<'a> {
    scenario: &'a Scenario,
    random: Pcg64,
    sent: u64,
    /// The time up to the latest arrival without the off-phases of bursts, in nanoseconds.
    on_time: f64,
}

impl<'a> Traffic<'a> {
    pub fn new(scenario: &'a Scenario) -> Self {
        Self { scenario, random: Pcg64::seed_from_u64(scenario.seed), sent: 0, on_time: 0.0 }
    }

    /// The arrival time of the next request; none after the last.
    pub fn next(&mut self) -> Option<Ns> {
        if self.sent == self.scenario.requests {
            return None;
        }
        let gap: f64 = Exp1.sample(&mut self.random);
        let at = match self.scenario.arrivals {
            Arrivals::Poisson { rate } => {
                self.on_time += gap * 1e9 / rate;
                self.on_time
            }
            Arrivals::Bursts { rate, period, on } => {
                self.on_time += gap * 1e9 * on / rate;
                let on_period = period.0 as f64 * on;
                (self.on_time / on_period).floor() * period.0 as f64 + self.on_time % on_period
            }
        };
        Some(Ns(at as u64))
    }

    /// The request that arrives now, and the time at which its client cancels it unless it was answered before.
    pub fn arrival(&mut self, now: Ns, live: &BTreeMap<Role, ModelId>) -> (Arrival, Option<Ns>) {
        let scenario = self.scenario;
        let job = JobId(self.sent);
        self.sent += 1;
        let tenants = scenario.tenants.iter().map(|tenant| tenant.traffic);
        let tenant = TenantId(self.pick(tenants) as u32);
        let budget = self.pick_of(&scenario.budgets);
        let policy = self.pick_of(&scenario.policies);
        let priority = self.pick_of(&scenario.priorities);
        let lengths = self.lengths();
        let leaves = (self.random.random::<f64>() < scenario.hardships.cancel).then(|| {
            let patience = budget.unwrap_or(Ns::from_millis(1_000)).0;
            now + Ns(self.random.random_range(0..patience))
        });
        let prefix = match scenario.prefix_tokens_max {
            0 => 0,
            most => self.random.random_range(0..=most),
        };
        let pairs = lengths.len() as u32;
        let asks = |tier, prefix| {
            let lengths = lengths.clone();
            let ask = move |(_, &model)| Ask { model, prefix, lengths: lengths.clone() };
            live.iter().filter(move |(role, _)| role.tier == tier).map(ask)
        };
        let primaries = asks(Tier::Primary, prefix).collect();
        let fallback = asks(Tier::Fallback, 0).next();
        let (arrived, deadline, top_k) = (now, budget.map(|budget| now + budget), None);
        let arrival =
            Arrival { job, tenant, priority, policy, arrived, deadline, top_k, pairs, primaries, fallback };
        (arrival, leaves)
    }

    /// Tokens of each pair.
    fn lengths(&mut self) -> Arc<[u32]> {
        let seen = &self.scenario.requests_seen;
        if !seen.is_empty() {
            return seen[self.random.random_range(0..seen.len())].clone();
        }
        let Scenario { candidates_mean, tokens_median, tokens_sigma, .. } = *self.scenario;
        let candidates = Geometric::new(1.0 / candidates_mean).expect("a mean is at least one");
        let candidates = 1 + candidates.sample(&mut self.random).min(10 * candidates_mean as u64);
        let tokens = LogNormal::new(tokens_median.ln(), tokens_sigma).expect("a sigma is a number");
        (0..candidates).map(|_| (tokens.sample(&mut self.random) as u32).clamp(4, 512)).collect()
    }

    fn pick_of<T: Copy>(&mut self, options: &[(f64, T)]) -> T {
        options[self.pick(options.iter().map(|(weight, _)| *weight))].1
    }

    fn pick(&mut self, weights: impl ExactSizeIterator<Item = f64> + Clone) -> usize {
        let last = weights.len() - 1;
        if last == 0 {
            return 0;
        }
        let mut left = self.random.random::<f64>() * weights.clone().sum::<f64>();
        let mut weights = weights;
        let found = weights.position(|weight| {
            left -= weight;
            left < 0.0
        });
        found.unwrap_or(last)
    }
}
