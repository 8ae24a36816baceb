//! Two servers or two settings side by side: in turns, so that what else the machine does meets both.

use super::figures::{Figures, PERCENTILES, RunReport};
use super::run::{Found, Load, Progress, RunPlan, run};
use crate::base::Ns;
use crate::eval::Interval;
use serde::Serialize;
use std::sync::Arc;

/// What is done in turns.
#[derive(Clone, Debug, PartialEq)]
pub struct VersusPlan {
    /// One turn; each round has a seed of its own, and both sides get the same requests at the same times.
    pub turn: RunPlan,
    /// Rounds, each a turn of A and one of B.
    pub rounds: u32,
    /// The most that the 99th percentile of the client's lag may be.
    pub lag_max: Ns,
}

/// A figure of B divided by A's: the geometric mean of the rounds' ratios, and the interval in which it lies
/// 95 times in 100, were other rounds drawn.
#[derive(Clone, Debug, Serialize)]
pub struct Ratio {
    /// What it is of.
    pub name: String,
    /// A's, over all rounds.
    pub a: f64,
    /// B's.
    pub b: f64,
    /// B by A.
    pub ratio: f64,
    /// Where the interval begins.
    pub low: f64,
    /// Where it ends.
    pub high: f64,
}

/// What a comparison in turns found.
#[derive(Clone, Debug, Serialize)]
pub struct VersusReport {
    /// Rounds.
    pub rounds: u32,
    /// A's turns together.
    pub a: RunReport,
    /// B's turns together.
    pub b: RunReport,
    /// B by A.
    pub ratios: Vec<Ratio>,
    /// Why the latencies are not the servers': the client fell behind its own schedule.
    pub invalid: Option<String>,
}

/// Runs A and B in turns: A B A B. `watch` is told the side, the round from 0, and how far its turn is.
pub async fn versus(
    sides: &[Arc<Load>; 2],
    plan: &VersusPlan,
    watch: &mut (dyn FnMut(char, u32, Progress) + Send),
) -> VersusReport {
    let mut rounds: [Vec<Figures>; 2] = Default::default();
    let mut whole: [Found; 2] = Default::default();
    for round in 0..plan.rounds {
        let turn = RunPlan { seed: plan.turn.seed.wrapping_add(round.into()), ..plan.turn.clone() };
        for (side, name) in [(0, 'A'), (1, 'B')] {
            let found = run(&sides[side], &turn, &mut |progress| watch(name, round, progress)).await;
            rounds[side].push(RunReport::of(&sides[side], &turn, &found, plan.lag_max).all);
            whole[side].merge(&found);
        }
    }
    let [a, b] = [0, 1].map(|side| RunReport::of(&sides[side], &plan.turn, &whole[side], plan.lag_max));
    let latency = |percentile| move |figures: &Figures| Some(figures.percentile(percentile));
    let mut ratios = Vec::new();
    let mut put = |name: &str, value: &dyn Fn(&Figures) -> Option<f64>| {
        let rounds = rounds[0].iter().zip(&rounds[1]);
        let pairs: Vec<_> = rounds.filter_map(|(a, b)| Some((value(a)?, value(b)?))).collect();
        let whole = (value(&a.all), value(&b.all));
        ratios.extend(ratio(name, &pairs, (whole.0.unwrap_or(0.0), whole.1.unwrap_or(0.0)), plan.turn.seed));
    };
    put("mean ms", &|figures| Some(figures.mean_ms));
    for percentile in PERCENTILES.into_iter().filter(|&percentile| percentile <= 99.0) {
        put(&format!("p{percentile} ms"), &latency(percentile));
    }
    put("answers a second", &|figures| Some(figures.answered_per_s));
    put("device ms", &|figures| figures.device_ms);
    put("$ for 1000", &|figures| figures.dollars_per_thousand);
    let invalid = a.invalid.clone().or_else(|| b.invalid.clone());
    VersusReport { rounds: plan.rounds, a, b, ratios, invalid }
}

/// The ratio over pairs of a round's figures, A's and B's; none where no pair has both.
fn ratio(name: &str, pairs: &[(f64, f64)], (a, b): (f64, f64), seed: u64) -> Option<Ratio> {
    let logs = pairs.iter().filter(|(a, b)| *a > 0.0 && *b > 0.0).map(|(a, b)| (b / a).ln());
    let logs: Vec<f64> = logs.collect();
    let Interval { mean, low, high } = Interval::of(&logs, seed);
    let [ratio, low, high] = [mean, low, high].map(f64::exp);
    (!logs.is_empty()).then(|| Ratio { name: name.to_owned(), a, b, ratio, low, high })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_that_of_rounds_and_its_interval_holds_it() {
        let pairs: Vec<(f64, f64)> =
            (0..20).map(|n| (10.0 + f64::from(n), 5.0 + 0.5 * f64::from(n))).collect();
        let found = ratio("p50", &pairs, (20.0, 10.0), 1).unwrap();
        assert!((found.ratio - 0.5).abs() < 1e-9 && (found.low - 0.5).abs() < 1e-9, "{found:?}");
        let noisy: Vec<(f64, f64)> = (0..20).map(|n| (10.0, if n % 2 == 0 { 8.0 } else { 12.5 })).collect();
        let found = ratio("p50", &noisy, (10.0, 10.0), 1).unwrap();
        assert!((found.ratio - 1.0).abs() < 1e-9 && found.low < 0.95 && found.high > 1.05, "{found:?}");
        assert!(ratio("p50", &[(0.0, 1.0)], (0.0, 1.0), 1).is_none());
    }
}
