//! The reported figures of a run.

use super::run::{Found, Load, Pace, RunPlan};
use super::tally::{SLICES, Tally, Times};
use crate::base::Ns;
use serde::Serialize;
use std::collections::BTreeMap;

/// The percentiles in tables.
pub const PERCENTILES: [f64; 6] = [50.0, 90.0, 95.0, 99.0, 99.9, 100.0];

/// The figures of a run, or of one kind of its requests. Times are in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// The run's or kind's name.
    pub name: String,
    /// Requests sent per second. In an open loop this is the offered rate.
    pub offered_per_s: f64,
    /// Requests sent.
    pub sent: u64,
    /// Requests answered.
    pub answered: u64,
    /// Requests answered per second.
    pub answered_per_s: f64,
    /// Documents of answered requests.
    pub documents: u64,
    /// Documents of answered requests per second.
    pub documents_per_s: f64,
    /// Failures by kind.
    pub failed: BTreeMap<String, u64>,
    /// The message of the first failure.
    pub failed_first: Option<String>,
    /// Mean latency.
    pub mean_ms: f64,
    /// Latency percentiles, those of tables and more: percentile and milliseconds.
    pub latency_ms: Vec<(f64, f64)>,
    /// The 99th percentile of the delay between scheduled and actual send.
    pub lag_p99_ms: f64,
    /// Answers by tier.
    pub tiers: BTreeMap<String, u64>,
    /// Degraded answers by reason.
    pub degraded: BTreeMap<String, u64>,
    /// Mean device time per answer; none if the server does not report it.
    pub device_ms: Option<f64>,
    /// The price of 1,000 answers; none if the server does not report it or has no prices.
    pub dollars_per_thousand: Option<f64>,
}

impl Figures {
    pub(super) fn of(name: &str, tally: &Tally, found: &Found) -> Self {
        let (offered, elapsed) =
            (found.offered.as_secs_f64().max(1e-9), found.elapsed.as_secs_f64().max(1e-9));
        let (priced, device_ns, nanodollars) = tally.priced;
        let of_priced = |sum: u64| (priced > 0 && sum > 0).then(|| sum as f64 / priced as f64);
        Self {
            name: name.to_owned(),
            offered_per_s: tally.sent as f64 / offered,
            sent: tally.sent,
            answered: tally.answered(),
            answered_per_s: tally.answered() as f64 / elapsed,
            documents: tally.documents,
            documents_per_s: tally.documents as f64 / elapsed,
            failed: tally.failed.clone(),
            failed_first: tally.failed_first.clone(),
            mean_ms: tally.latency.mean_ms(),
            latency_ms: curve(&tally.latency),
            lag_p99_ms: tally.lag.percentile_ms(99.0),
            tiers: tally.tiers.clone(),
            degraded: tally.degraded.clone(),
            device_ms: of_priced(device_ns).map(|ns| ns / 1e6),
            dollars_per_thousand: of_priced(nanodollars).map(|nanodollars| nanodollars / 1e6),
        }
    }

    /// A percentile of [`PERCENTILES`], in milliseconds; 0 without answers.
    pub fn percentile(&self, percentile: f64) -> f64 {
        self.latency_ms.iter().find(|(other, _)| *other >= percentile).map_or(0.0, |(_, ms)| *ms)
    }

    /// Requests without an answer.
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }

    /// The share of answers that are full, 0 to 1; 0 if the server does not report it.
    pub fn full(&self) -> f64 {
        self.tiers.get("full").map_or(0.0, |&full| full as f64 / self.answered.max(1) as f64)
    }
}

/// The percentiles of tables, and 16 more for each tenth of the remaining times, as far as there are enough times.
fn curve(times: &Times) -> Vec<(f64, f64)> {
    if times.count() == 0 {
        return Vec::new();
    }
    let steps = ((times.count() as f64).log10() * 16.0) as i32;
    let tail = (0..=steps).map(|step| 100.0 * (1.0 - 10f64.powf(-f64::from(step) / 16.0)));
    let mut percentiles: Vec<f64> = tail.chain(PERCENTILES).collect();
    percentiles.sort_unstable_by(f64::total_cmp);
    percentiles.dedup();
    percentiles.into_iter().map(|percentile| (percentile, times.percentile_ms(percentile))).collect()
}

/// A time slice of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Moment {
    /// Its start, in seconds after the warm-up.
    pub seconds: f64,
    /// Answers by tier; answers of a server that reports no tier are `answered`.
    pub tiers: BTreeMap<String, u64>,
    /// Degraded answers by reason.
    pub degraded: BTreeMap<String, u64>,
    /// Failures.
    pub failed: u64,
    /// Mean device time per answer in milliseconds, if the server reports it.
    pub device_ms: Option<f64>,
    /// The price of 1,000 answers, if the server reports it.
    pub dollars_per_thousand: Option<f64>,
}

/// The report of a run.
#[derive(Clone, Debug, Serialize)]
pub struct RunReport {
    /// The arrival process, in words.
    pub pace: String,
    /// Whether it was a closed loop.
    pub closed: bool,
    /// All requests.
    pub all: Figures,
    /// The figures of each kind, if there are several.
    pub kinds: Vec<Figures>,
    /// Time slices. A request belongs to the slice of its scheduled send.
    pub moments: Vec<Moment>,
    /// The length of a slice in seconds.
    pub moment_seconds: f64,
    /// A warning if the client fell behind its schedule, so that the latencies are not the server's.
    pub invalid: Option<String>,
}

impl RunReport {
    /// Reports a run. `lag_max` is the allowed 99th percentile of the client's lag.
    pub fn of(load: &Load, plan: &RunPlan, found: &Found, lag_max: Ns) -> Self {
        let all = found.all();
        let kinds = load.kinds().iter().zip(&found.kinds);
        let kinds: Vec<_> = kinds.map(|(kind, tally)| Figures::of(&kind.name(), tally, found)).collect();
        let moment_seconds = (plan.duration.0 / SLICES).max(1) as f64 / 1e9;
        let moment = |(&place, slice): (&u64, &super::tally::Slice)| {
            let (priced, device_ns, nanodollars) = slice.priced;
            let of_priced = |sum: u64| (priced > 0 && sum > 0).then(|| sum as f64 / priced as f64 / 1e6);
            Moment {
                seconds: place as f64 * moment_seconds,
                tiers: slice.tiers.clone(),
                degraded: slice.degraded.clone(),
                failed: slice.failed,
                device_ms: of_priced(device_ns),
                dollars_per_thousand: of_priced(nanodollars),
            }
        };
        let name = if load.kinds().len() == 1 { load.kinds()[0].name() } else { "all".to_owned() };
        Self {
            pace: plan.pace.to_string(),
            closed: matches!(plan.pace, Pace::Closed { .. }),
            all: Figures::of(&name, &all, found),
            kinds: if kinds.len() > 1 { kinds } else { Vec::new() },
            moments: all.slices.iter().map(moment).collect(),
            moment_seconds,
            invalid: invalid(&all.lag, lag_max),
        }
    }
}

/// The warning that a client fell behind its schedule.
fn invalid(lag: &Times, lag_max: Ns) -> Option<String> {
    let (p99, limit) = (lag.percentile_ms(99.0), lag_max.as_millis_f64());
    (p99 > limit).then(|| {
        format!(
            "the client fell behind its own schedule: p99 of its lag is {p99:.1} ms, and the limit {limit} ms"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_goes_as_far_as_there_are_answers() {
        let mut times = Times::default();
        (1..=1_000).for_each(|n| times.add(Ns::from_millis(n)));
        let curve = curve(&times);
        assert!(curve.iter().is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{curve:?}");
        let at = |percentile| curve.iter().find(|(other, _)| *other == percentile).unwrap().1;
        // A bucket is 0.1% wide, and p99.9 of 1,000 may be the last value.
        let near = |percentile: f64| (at(percentile) / (10.0 * percentile) - 1.0).abs() < 0.002;
        assert!(near(50.0) && near(99.0) && near(99.9) && near(100.0), "{curve:?}");
        assert!(super::curve(&Times::default()).is_empty());
    }

    #[test]
    fn a_client_that_fell_behind_says_so() {
        let mut lag = Times::default();
        (0..1_000).for_each(|n| lag.add(Ns::from_millis(if n < 980 { 0 } else { 50 })));
        assert!(
            invalid(&lag, Ns::from_millis(5))
                .unwrap()
                .contains("p99 of its lag is 50.0 ms, and the limit 5 ms")
        );
        assert_eq!(invalid(&lag, Ns::from_millis(60)), None);
    }
}
