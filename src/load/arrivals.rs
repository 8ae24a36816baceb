//! When requests are sent. A schedule is made before the first one leaves, so that a slow server cannot
//! slow its clients down and so hide its tail (Tene's "coordinated omission").

use crate::base::Ns;
use rand::SeedableRng;
use rand_distr::{Distribution, Exp1};
use rand_pcg::Pcg64;
use std::fmt;

/// Most requests of a schedule. It is kept in memory: 8 bytes each.
pub const REQUESTS_MAX: f64 = 1e8;

/// How requests arrive.
#[derive(Clone, Debug, PartialEq)]
pub enum Arrivals {
    /// Independently of each other.
    Poisson,
    /// At equal distances.
    Constant,
    /// As Poisson's, but all of them within the first part `on` of each `period`.
    Bursts {
        /// On and off together, more than 0.
        period: Ns,
        /// The share of the period in which requests come, more than 0 and up to 1.
        on: f64,
    },
    /// At these times, repeated from the start when they are used up.
    Trace(Trace),
}

/// Times at which requests were once sent: ascending, the first is 0, and there are at least two.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace(Vec<Ns>);

impl Arrivals {
    /// The times of requests at `rate` a second for a duration, ascending, from 0.
    pub fn schedule(&self, rate: f64, duration: Ns, seed: u64) -> Vec<Ns> {
        self.times(rate, seed).take_while(|&at| at < duration).collect()
    }

    /// The times of requests at `rate` a second without an end, ascending, from 0. A trace is stretched or
    /// squeezed so that its mean rate is `rate`.
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
    /// Reads a time in seconds from each line; they ascend, and what comes before the first is left out.
    ///
    /// # Errors
    /// Names the line, counted from 1.
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

    /// Its mean rate, a second.
    pub fn rate(&self) -> f64 {
        self.0.len() as f64 * 1e9 / self.length()
    }

    /// How long it lasts: to its last request, and a mean distance more.
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
            // 10,000 are expected, and a standard deviation is 100.
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
