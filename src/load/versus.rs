//! Two servers or two settings, measured in turns, so that other work on the machine affects both alike.

use super::figures::{Figures, PERCENTILES, RunReport};
use super::run::{Found, Load, Progress, RunPlan, run};
use crate::base::Ns;
use crate::eval::Interval;
use serde::Serialize;
use std::sync::Arc;

/// The plan of a comparison in turns.
#[derive(Clone, Debug, PartialEq)]
pub struct VersusPlan {
    /// The plan of one turn. Each round has its own seed; both sides get the same requests at the same times.
    pub turn: RunPlan,
    /// Rounds; each is one turn of A and one of B.
    pub rounds: u32,
    /// The allowed 99th percentile of the client's lag.
    pub lag_max: Ns,
}

/// A figure of B divided by that of A: the geometric mean over rounds, with a 95% confidence interval.
#[derive(Clone, Debug, Serialize)]
pub struct Ratio {
    /// The figure's name.
    pub name: String,
    /// A's value over all rounds.
    pub a: f64,
    /// B's value over all rounds.
    pub b: f64,
    /// B divided by A.
    pub ratio: f64,
    /// The lower end of the interval.
    pub low: f64,
    /// The upper end of the interval.
    pub high: f64,
}

/// The result of a comparison in turns.
#[derive(Clone, Debug, Serialize)]
pub struct VersusReport {
    /// Rounds.
    pub rounds: u32,
    /// A's turns, merged.
    pub a: RunReport,
    /// B's turns, merged.
    pub b: RunReport,
    /// The ratios of B to A.
    pub ratios: Vec<Ratio>,
    /// A warning if the client fell behind its schedule, so that the latencies are not the servers'.
    pub invalid: Option<String>,
}

/// Runs A and B in turns: A B A B. `watch` gets the side, the round (from 0) and the progress of its turn.
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

/// The ratio over pairs of figures, A's and B's, of a round; none if no pair has both.
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
