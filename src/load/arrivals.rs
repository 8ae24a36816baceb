//! When requests are sent. The schedule is made before the first request, so that a slow server cannot slow the client
//! down and thereby hide its tail latency (Tene's "coordinated omission").

use crate::base::Ns;
use rand::SeedableRng;
use rand_distr::{Distribution, Exp1};
use rand_pcg::Pcg64;
use std::fmt;

/// Most requests of a schedule, which is kept in memory at 8 bytes each.
pub const REQUESTS_MAX: f64 = 1e8;

/// The arrival process.
#[derive(Clone, Debug, PartialEq)]
pub enum Arrivals {
    /// Poisson: independent arrivals.
    Poisson,
    /// Constant distances.
    Constant,
    /// Poisson, but only within the first share `on` of each `period`.
    Bursts {
        /// The length of an on-off cycle, more than 0.
        period: Ns,
        /// The share of the cycle in which requests arrive, more than 0 and at most 1.
        on: f64,
    },
    /// The times of a trace, repeated when they are used up.
    Trace(Trace),
}

/// Recorded times of requests: ascending, from 0, at least two.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace(Vec<Ns>);

impl Arrivals {
    /// Send times for `rate` requests a second over a duration: ascending, from 0.
    pub fn schedule(&self, rate: f64, duration: Ns, seed: u64) -> Vec<Ns> {
        self.times(rate, seed).take_while(|&at| at < duration).collect()
    }

    /// Endless send times for `rate` requests a second: ascending, from 0. A trace is scaled so that its mean rate is
    /// `rate`.
    pub fn times(&self, rate: f64, seed: u64) -> impl Iterator<Item = Ns> {
        let mut random = Pcg64::seed_from_u64(seed);
        let gap = 1e9 / rate;
        let mut sum = 0.0;
        let mut poisson = move || {
            let next: f64 = Exp1.sample(&mut random);
            sum += next * gap;
            sum
        };
        let all: Box<dyn Iterator<Item = f64>> = match self {
            Self::Constant => Box::new((0_u32..).map(move |n| f64::from(n) * gap)),
            Self::Poisson => Box::new(std::iter::repeat_with(poisson)),
            Self::Bursts { period, on } => {
                let period = period.0 as f64;
                let on_time = period * on;
                Box::new(std::iter::repeat_with(move || {
                    let worked = poisson() * on;
                    (worked / on_time).floor() * period + worked % on_time
                }))
            }
            Self::Trace(trace) => {
                let (length, factor) = (trace.length(), trace.rate() / rate);
                let rounds = (0_u32..).map(move |round| f64::from(round) * length);
                Box::new(
                    rounds
                        .flat_map(move |start| trace.0.iter().map(move |at| (start + at.0 as f64) * factor)),
                )
            }
        };
        all.map(|at| Ns(at as u64))
    }
}

impl fmt::Display for Arrivals {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Poisson => write!(f, "Poisson"),
            Self::Constant => write!(f, "constant"),
            Self::Bursts { period, on } => {
                write!(f, "bursty ({:.0}% of each {} s)", 100.0 * on, period.as_secs_f64())
            }
            Self::Trace(trace) => write!(f, "trace of {} times", trace.0.len()),
        }
    }
}

impl Trace {
    /// Reads one time in seconds per line, ascending; times are relative to the first.
    ///
    /// # Errors
    /// The message names the line, counted from 1.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut times: Vec<f64> = Vec::new();
        for (line, number) in text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty()) {
            let at = line.trim().parse().ok().filter(|at: &f64| (0.0..=1e9).contains(at));
            let at = at.ok_or_else(|| format!("{number}: `{line}` is no time in seconds"))?;
            if times.last().is_some_and(|&last| at < last) {
                return Err(format!("{number}: {at} comes after a later time"));
            }
            times.push(at);
        }
        match times[..] {
            [first, .., last] if last > first => {
                Ok(Self(times.iter().map(|at| Ns(((at - first) * 1e9) as u64)).collect()))
            }
            _ => Err(" two different times are needed at least".to_owned()),
        }
    }

    /// Its mean rate per second.
    pub fn rate(&self) -> f64 {
        self.0.len() as f64 * 1e9 / self.length()
    }

    /// Its duration: up to the last request, plus the mean distance.
    pub fn duration(&self) -> Ns {
        Ns(self.length() as u64)
    }

    fn length(&self) -> f64 {
        let last = self.0.last().map_or(0, |last| last.0);
        last as f64 * self.0.len() as f64 / (self.0.len() - 1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTES: Ns = Ns::from_millis(1_000_000);

    fn trace() -> Trace {
        Trace::parse("10\n10.5\n\n11\n13\n").unwrap()
    }

    #[test]
    fn every_kind_keeps_its_rate_and_order_and_seed() {
        let bursts = Arrivals::Bursts { period: Ns::from_millis(2_000), on: 0.25 };
        for kind in [Arrivals::Poisson, Arrivals::Constant, bursts, Arrivals::Trace(trace())] {
            let times = kind.schedule(10.0, MINUTES, 7);
            // 10,000 are expected, with a standard deviation of 100.
            assert!((9_600..=10_400).contains(&times.len()), "{kind}: {}", times.len());
            assert!(times.is_sorted() && times.iter().all(|&at| at < MINUTES), "{kind}");
            assert_eq!(times, kind.schedule(10.0, MINUTES, 7), "{kind}");
        }
    }

    #[test]
    fn gaps_of_poisson_are_exponential_and_bursts_keep_to_their_time() {
        let times = Arrivals::Poisson.schedule(10.0, MINUTES, 1);
        let gaps: Vec<f64> = times.windows(2).map(|two| (two[1] - two[0]).as_secs_f64()).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean - 0.1).abs() < 0.004 && (variance.sqrt() - 0.1).abs() < 0.004, "{mean} {variance}");
        let period = Ns::from_millis(2_000);
        let times = Arrivals::Bursts { period, on: 0.25 }.schedule(10.0, MINUTES, 1);
        assert!(times.iter().all(|at| at.0 % period.0 <= period.0 / 4));
    }

    #[test]
    fn a_trace_is_repeated_as_it_was() {
        let trace = trace();
        assert_eq!((trace.rate(), trace.duration()), (1.0, Ns::from_millis(4_000)));
        let times = Arrivals::Trace(trace).schedule(1.0, Ns::from_millis(5_000), 1);
        assert_eq!(
            times.iter().map(|at| at.0 / 1_000_000).collect::<Vec<_>>(),
            [0, 500, 1_000, 3_000, 4_000, 4_500]
        );
    }

    #[test]
    fn a_trace_that_is_none_is_named_by_its_line() {
        for (text, expected) in [
            ("1\nx\n", "2: `x` is no time in seconds"),
            ("1\n-1\n", "2: `-1` is no time"),
            ("2\n1\n", "2: 1 comes after a later time"),
            ("1\n", " two different times"),
            ("", " two different times"),
            ("1\n1\n", " two different times"),
        ] {
            assert!(Trace::parse(text).unwrap_err().starts_with(expected), "{text}");
        }
    }
}
