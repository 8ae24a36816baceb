//! Cost and latency of a way: measures both models' devices here, then simulates the server on them under a stated
//! load, with the real scheduler.

use super::way::Way;
use crate::backend::{ScoreError, Scorer};
use crate::base::{Ns, Tier};
use crate::engine::Clock;
use crate::forecast::predict::Load;
use crate::rerank::Policy;
use crate::sched::Scheduler;
use crate::sim::{self, Arrivals, Device, Scenario};
use crate::token::Packed;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Token counts of the measured batches, and repetitions.
const SIZES: [(usize, u32); 5] = [(1, 32), (1, 256), (4, 128), (8, 64), (32, 64)];
const ROUNDS: usize = 5;
/// Requests of a simulated run.
const REQUESTS: u64 = 2_000;

/// Measures a scorer: the three coefficients of the batch time, by least squares on the relative error.
///
/// # Errors
/// Those of the scorer.
pub(super) fn measure(
    tier: Tier,
    scorer: &mut dyn Scorer,
    tokens_max: u32,
    clock: Clock,
) -> Result<Device, ScoreError> {
    let mut points = Vec::new();
    let mut number = 0;
    for (pairs, tokens) in SIZES {
        let mut batch = Packed::default();
        let mut logits = vec![0.0; pairs];
        let mut best = u64::MAX;
        for _ in 0..ROUNDS {
            batch.clear();
            for _ in 0..pairs {
                batch.push_numbered(number, tokens.min(tokens_max));
                number += 1;
            }
            let started = clock.now();
            scorer.score(&batch, &mut logits)?;
            best = best.min(clock.now().0 - started.0);
        }
        points.push((Load::of(batch.lengths()), best.max(1) as f64));
    }
    let [c0, c1, c2] = fit(&points);
    Ok(Device { tier, place: 0, c0, c1, c2, noise: 0.1, batch_tokens_max: 4_096, depth: 1 })
}

/// The non-negative coefficients with the least relative error: a negative one is left out and the others are fitted
/// again.
fn fit(points: &[(Load, f64)]) -> [f64; 3] {
    let row = |load: &Load| [1.0, load.tokens as f64, load.squares as f64];
    let mut used = vec![0, 1, 2];
    loop {
        let n = used.len();
        let mut matrix = vec![vec![0.0; n + 1]; n];
        for (load, took) in points {
            let row: Vec<f64> = used.iter().map(|&place| row(load)[place] / took).collect();
            for (line, &a) in matrix.iter_mut().zip(&row) {
                row.iter().chain([&1.0]).zip(line).for_each(|(b, sum)| *sum += a * b);
            }
        }
        let solved = solve(matrix);
        let Some(negative) = solved.iter().position(|&c| c < 0.0) else {
            let mut all = [0.0; 3];
            used.iter().zip(solved).for_each(|(&place, c)| all[place] = c);
            return all;
        };
        used.remove(negative);
    }
}

/// Gauss-Jordan elimination on `[n, n + 1]`; an undetermined unknown is 0.
fn solve(mut matrix: Vec<Vec<f64>>) -> Vec<f64> {
    let n = matrix.len();
    for column in 0..n {
        let best = (column..n).max_by(|&a, &b| matrix[a][column].abs().total_cmp(&matrix[b][column].abs()));
        matrix.swap(column, best.expect("there are rows"));
        let pivot = matrix[column].clone();
        if pivot[column] == 0.0 {
            continue;
        }
        for (place, row) in matrix.iter_mut().enumerate().filter(|(place, _)| *place != column) {
            let factor = row[column] / pivot[column];
            debug_assert!(place != column);
            row.iter_mut().zip(&pivot).for_each(|(value, pivot)| *value -= factor * pivot);
        }
    }
    (0..n)
        .map(|place| if matrix[place][place] == 0.0 { 0.0 } else { matrix[place][n] / matrix[place][place] })
        .collect()
}

/// The token counts of requests, and the devices that answer them.
pub(super) struct Service {
    pub requests: Vec<Arc<[u32]>>,
    pub primary: Device,
    pub fallback: Device,
    /// Requests per second.
    pub rate: f64,
    pub dollars_per_hour: f64,
    pub seed: u64,
}

/// Latency, cost and degradation of a way, simulated or measured.
#[derive(Clone, Debug, Default)]
pub(super) struct Served {
    /// Of a request; none if unknown.
    pub cost: Option<ServedCost>,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// The shares of requests by answering tier. The rest to 1 was refused.
    pub shares: Vec<(Way, f64)>,
    /// The share that was answered in full; none if unknown.
    pub in_full: Option<f64>,
}

/// The cost of a request, discarded work included.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct ServedCost {
    pub device_ns: f64,
    pub dollars: f64,
}

impl Service {
    /// Requests per second that the primary alone could answer in full.
    pub fn capacity(&self) -> f64 {
        let request = |lengths: &Arc<[u32]>| self.primary.mean_ns(&Load::of(lengths.iter().copied()));
        1e9 * self.requests.len() as f64 / self.requests.iter().map(request).sum::<f64>()
    }

    /// Simulates a way on these devices with the real scheduler.
    pub fn serve(&self, way: Way) -> Served {
        let (policy, budget, k) = match way {
            Way::Server(_) => unreachable!("a server is asked, not simulated"),
            Way::FirstStage => {
                return Served {
                    shares: vec![(way, 1.0)],
                    cost: Some(ServedCost::default()),
                    ..Served::default()
                };
            }
            Way::Fallback => (Policy::Fallback, None, None),
            Way::TopK(k) => (Policy::TopK, None, Some(k)),
            Way::Full => (Policy::Full, None, None),
            Way::Budget(ms) => (Policy::Auto, Some(Ns::from_millis(ms)), None),
        };
        let mut scenario = Scenario::mixed(self.seed, REQUESTS, 1.0);
        scenario.arrivals = Arrivals::Poisson { rate: self.rate };
        scenario.requests_seen.clone_from(&self.requests);
        scenario.budgets = vec![(1.0, budget)];
        scenario.policies = vec![(1.0, policy)];
        scenario.devices = vec![self.primary, self.fallback];
        scenario.limits = crate::sched::Limits::default();
        if let Some(k) = k {
            scenario.limits.top_k_default = k as u32;
        }
        let mut scheduler = Scheduler::new(&scenario.config());
        let report = sim::run(&scenario, &mut scheduler);
        let all = report.requests as f64;
        let mut shares = BTreeMap::from([
            ("full", (Way::Full, report.full)),
            ("fallback", (Way::Fallback, report.fallback)),
        ]);
        shares.retain(|_, (_, count)| *count > 0);
        let top_ks = report.top_ks.iter().map(|(&k, &count)| (Way::TopK(k as usize), count));
        let shares =
            shares.into_values().chain(top_ks).map(|(way, count)| (way, count as f64 / all)).collect();
        let busy = report.busy.primary + report.busy.fallback;
        let ms = |share| report.quantile(share).0 as f64 / 1e6;
        let answered = (report.full + report.top_k + report.fallback).max(1) as f64;
        let device_ns = busy.0 as f64 / answered;
        let cost = Some(ServedCost { device_ns, dollars: device_ns / 3.6e12 * self.dollars_per_hour });
        let in_full = Some(report.full as f64 / all);
        Served { cost, p50_ms: ms(0.5), p99_ms: ms(0.99), shares, in_full }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coefficients_are_found_again_and_none_is_negative() {
        let point = |lengths: &[u32], c: [f64; 3]| {
            let load = Load::of(lengths.iter().copied());
            (load, c[0] + c[1] * load.tokens as f64 + c[2] * load.squares as f64)
        };
        let shapes: [&[u32]; 4] = [&[32], &[256], &[64; 8], &[128; 4]];
        let found = fit(&shapes.map(|shape| point(shape, [500.0, 40.0, 0.3])));
        for (found, expected) in found.into_iter().zip([500.0, 40.0, 0.3]) {
            assert!((found / expected - 1.0).abs() < 1e-6, "{found}, {expected}");
        }
        let found = fit(&shapes.map(|shape| point(shape, [500.0, 40.0, -0.01])));
        assert!(found.iter().all(|&c| c >= 0.0) && found[1] > 0.0, "{found:?}");
    }

    #[test]
    fn a_budget_is_met_by_answering_with_less() {
        let device = |tier, c1| Device {
            tier,
            place: 0,
            c0: 1e5,
            c1,
            c2: 0.0,
            noise: 0.05,
            batch_tokens_max: 4_096,
            depth: 1,
        };
        let mut service = Service {
            requests: vec![vec![100; 50].into(), vec![60; 80].into()],
            primary: device(Tier::Primary, 50e3),
            fallback: device(Tier::Fallback, 500.0),
            rate: 1.0,
            dollars_per_hour: 3.6,
            seed: 1,
        };
        service.rate = 0.5 * service.capacity();
        let device_ns = |served: &Served| served.cost.unwrap().device_ns;
        let (full, fallback) = (service.serve(Way::Full), service.serve(Way::Fallback));
        assert_eq!((&full.shares[..], full.in_full), (&[(Way::Full, 1.0)][..], Some(1.0)));
        assert!((full.cost.unwrap().dollars / device_ns(&full) - 1e-12).abs() < 1e-18);
        assert!(device_ns(&full) > 50.0 * device_ns(&fallback) && full.p99_ms > 200.0);
        let budget = service.serve(Way::Budget(100));
        assert!(budget.p99_ms <= 100.0, "{budget:?}");
        assert!((device_ns(&fallback)..device_ns(&full)).contains(&device_ns(&budget)));
        let total: f64 = budget.shares.iter().map(|(_, share)| share).sum();
        assert!((total - 1.0).abs() < 1e-9 && budget.shares.len() > 1, "{budget:?}");
        assert!(device_ns(&service.serve(Way::TopK(10))) < 0.5 * device_ns(&full));
    }
}
