//! Results of requests: counts, and HDR histograms that merge without loss.

use super::client::{Fault, Sent};
use crate::base::Ns;
use hdrhistogram::Histogram;
use std::collections::BTreeMap;

/// Significant digits of a histogram.
const DIGITS: u8 = 3;
/// The longest time in a histogram, in microseconds: an hour.
const MICROS_MAX: u64 = 3_600_000_000;
/// Time slices of a run, in which tiers are counted.
pub(super) const SLICES: u64 = 60;

/// A histogram of times from a microsecond to an hour, to three digits.
#[derive(Clone, Debug, PartialEq)]
pub struct Times(Histogram<u64>);

impl Default for Times {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, MICROS_MAX, DIGITS).expect("the bounds are those of a histogram"))
    }
}

impl Times {
    /// Adds a time.
    pub fn add(&mut self, time: Ns) {
        self.0.saturating_record((time.0 / 1_000).max(1));
    }

    /// Adds another histogram, exactly.
    pub fn merge(&mut self, other: &Self) {
        self.0.add(&other.0).expect("both have the same bounds");
    }

    /// The number of times.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// A percentile in milliseconds; 0 without times.
    pub fn percentile_ms(&self, percentile: f64) -> f64 {
        self.0.value_at_percentile(percentile) as f64 / 1e3
    }

    /// The mean in milliseconds; 0 without times.
    pub fn mean_ms(&self) -> f64 {
        self.0.mean() / 1e3
    }
}

/// The results of one kind of requests.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    /// Requests.
    pub sent: u64,
    /// Documents of all requests.
    pub documents_sent: u64,
    /// Documents of answered requests.
    pub documents: u64,
    /// Latency of answered requests: from the scheduled send (in a closed loop the send) to the answer.
    pub latency: Times,
    /// Lag of all requests: from the scheduled send to the send.
    pub lag: Times,
    /// Failures by their kind.
    pub failed: BTreeMap<String, u64>,
    /// The message of the first failure.
    pub failed_first: Option<String>,
    /// Answers by the reported tier.
    pub tiers: BTreeMap<String, u64>,
    /// Degraded answers by reason.
    pub degraded: BTreeMap<String, u64>,
    /// Answers that report device time, the sum of that time in nanoseconds, and the sum of their prices in
    /// nanodollars.
    pub priced: (u64, u64, u64),
    /// Results by time slice of the scheduled send.
    pub slices: BTreeMap<u64, Slice>,
}

/// The results of a time slice.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Slice {
    /// Answers by tier; answers of a server that reports no tier are `answered`.
    pub tiers: BTreeMap<String, u64>,
    /// Degraded answers by reason.
    pub degraded: BTreeMap<String, u64>,
    /// Failures.
    pub failed: u64,
    /// As in [`Tally`]: answers that report device time, that time, and their price.
    pub priced: (u64, u64, u64),
}

fn merge(into: &mut BTreeMap<String, u64>, other: &BTreeMap<String, u64>) {
    other.iter().for_each(|(name, count)| *into.entry(name.clone()).or_default() += count);
}

fn merge_priced(into: &mut (u64, u64, u64), other: (u64, u64, u64)) {
    *into = (into.0 + other.0, into.1 + other.1, into.2 + other.2);
}

impl Tally {
    /// Adds a request that was due at `due`, in this slice.
    pub fn add(&mut self, due: Ns, documents: usize, slice: u64, sent: &Sent) {
        self.sent += 1;
        self.documents_sent += documents as u64;
        self.lag.add(sent.began.saturating_sub(due));
        let slice = self.slices.entry(slice).or_default();
        let answer = match &sent.result {
            Ok(answer) => answer,
            Err(fault) => {
                *self.failed.entry(fault.kind()).or_default() += 1;
                self.failed_first.get_or_insert_with(|| Fault::to_string(fault));
                slice.failed += 1;
                return;
            }
        };
        self.documents += documents as u64;
        self.latency.add(sent.ended.saturating_sub(due));
        let tier = answer.tier.as_deref().unwrap_or("answered");
        for (all, name) in [
            (&mut self.tiers, Some(tier)),
            (&mut slice.tiers, Some(tier)),
            (&mut self.degraded, answer.degraded.as_deref()),
            (&mut slice.degraded, answer.degraded.as_deref()),
        ] {
            if let Some(name) = name {
                *all.entry(name.to_owned()).or_default() += 1;
            }
        }
        if let Some(device_ns) = answer.device_ns {
            let priced = (1, device_ns, answer.nanodollars.unwrap_or(0));
            merge_priced(&mut self.priced, priced);
            merge_priced(&mut slice.priced, priced);
        }
    }

    /// Adds another tally, exactly.
    pub fn merge(&mut self, other: &Self) {
        self.sent += other.sent;
        self.documents_sent += other.documents_sent;
        self.documents += other.documents;
        self.latency.merge(&other.latency);
        self.lag.merge(&other.lag);
        merge(&mut self.failed, &other.failed);
        if self.failed_first.is_none() {
            self.failed_first.clone_from(&other.failed_first);
        }
        merge(&mut self.tiers, &other.tiers);
        merge(&mut self.degraded, &other.degraded);
        merge_priced(&mut self.priced, other.priced);
        for (place, slice) in &other.slices {
            let own = self.slices.entry(*place).or_default();
            merge(&mut own.tiers, &slice.tiers);
            merge(&mut own.degraded, &slice.degraded);
            own.failed += slice.failed;
            merge_priced(&mut own.priced, slice.priced);
        }
    }

    /// Answered requests.
    pub fn answered(&self) -> u64 {
        self.latency.count()
    }
}

#[cfg(test)]
mod tests {
    use super::super::client::Answer;
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_pcg::Pcg64;

    fn sent(n: u64, latency: Ns) -> Sent {
        let (began, ended) = (Ns(n + 5_000), Ns(n) + latency);
        let tier = Some(["full", "fallback"][(n % 2) as usize].to_owned());
        let result = match n % 10 {
            9 => Err(Fault::TimedOut),
            _ => Ok(Answer { tier, device_ns: Some(n), nanodollars: Some(1), ..Answer::default() }),
        };
        Sent { began, ended, result }
    }

    #[test]
    fn parts_merged_are_the_whole() {
        let mut random = Pcg64::seed_from_u64(5);
        let (mut whole, mut parts) = (Tally::default(), vec![Tally::default(); 3]);
        for n in 0..10_000 {
            let latency = Ns((random.random::<f64>().powi(4) * 1e10) as u64);
            whole.add(Ns(n), 3, n / 1_000, &sent(n, latency));
            parts[(n % 3) as usize].add(Ns(n), 3, n / 1_000, &sent(n, latency));
        }
        let mut merged = Tally::default();
        parts.iter().for_each(|part| merged.merge(part));
        assert_eq!(merged, whole);
        assert_eq!((whole.answered(), whole.failed["timed out"], whole.documents), (9_000, 1_000, 27_000));
        assert_eq!(whole.tiers["full"], 5_000);
    }

    #[test]
    fn percentiles_are_right_to_three_digits() {
        let mut times = Times::default();
        (1..=100_000).for_each(|n| times.add(Ns::from_millis(n)));
        for percentile in [1.0, 50.0, 99.0, 99.9, 100.0] {
            let (found, right) = (times.percentile_ms(percentile), percentile * 1_000.0);
            assert!((found / right - 1.0).abs() <= 0.001, "p{percentile}: {found}");
        }
        assert!((times.mean_ms() / 50_000.5 - 1.0).abs() < 0.001);
        assert_eq!((Times::default().percentile_ms(99.0), Times::default().mean_ms()), (0.0, 0.0));
    }
}
