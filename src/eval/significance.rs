//! Tests whether two systems differ by more than the choice of queries explains.

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

/// Resamplings of each estimate.
const SAMPLES: usize = 10_000;

/// A mean with its 95% confidence interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// The mean of the queries' values.
    pub mean: f64,
    /// The lower end of the interval.
    pub low: f64,
    /// The upper end of the interval.
    pub high: f64,
}

impl Interval {
    /// By the percentile bootstrap over queries (Efron 1979); the same seed gives the same interval. All zeros without
    /// values.
    pub fn of(values: &[f64], seed: u64) -> Self {
        let mean = mean(values);
        let mut random = Pcg64::seed_from_u64(seed);
        let mut sample = || {
            let drawn = (0..values.len()).map(|_| values[random.random_range(0..values.len())]);
            drawn.sum::<f64>() / values.len().max(1) as f64
        };
        let mut means: Vec<f64> = (0..SAMPLES).map(|_| sample()).collect();
        means.sort_unstable_by(f64::total_cmp);
        Self { mean, low: means[SAMPLES / 40], high: means[SAMPLES - 1 - SAMPLES / 40] }
    }
}

/// The two-sided p-value of the paired randomisation test (Fisher 1935; Smucker, Allan and Carterette 2007): the share
/// of random sign changes whose mean of `a - b` is at least as far from 0. `a, b: [queries]`.
pub fn randomisation_p(a: &[f64], b: &[f64], seed: u64) -> f64 {
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    // A tolerance for rounding, because sums are taken in another order.
    let seen = differences.iter().sum::<f64>().abs() - 1e-12;
    let mut random = Pcg64::seed_from_u64(seed);
    let mut sample = || {
        let signed = differences.iter().map(|&x| if random.random::<bool>() { x } else { -x });
        signed.sum::<f64>().abs()
    };
    let as_far = (0..SAMPLES).filter(|_| sample() >= seen).count();
    (as_far + 1) as f64 / (SAMPLES + 1) as f64
}

/// The mean; 0 without values.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_always_differs_is_no_chance_and_what_never_does_is() {
        let (a, b): (Vec<f64>, Vec<f64>) = (
            (0..40).map(|n| f64::from(n) / 40.0 + 0.1).collect(),
            (0..40).map(|n| f64::from(n) / 40.0).collect(),
        );
        assert!(randomisation_p(&a, &b, 1) < 0.001);
        assert_eq!(randomisation_p(&a, &a, 1), 1.0);
        // Two queries of the same sign: two of the four sign changes are as far from 0.
        let p = randomisation_p(&[1.0, 1.0], &[0.0, 0.0], 1);
        assert!((p - 0.5).abs() < 0.02, "{p}");
        assert_eq!(randomisation_p(&[], &[], 1), 1.0);
    }

    #[test]
    fn an_interval_narrows_with_the_root_of_the_queries() {
        let values = |count: usize| (0..count).map(|n| f64::from((n % 2) as u8)).collect::<Vec<f64>>();
        let width = |count| {
            let Interval { mean, low, high } = Interval::of(&values(count), 3);
            assert!(mean == 0.5 && low <= mean && mean <= high);
            high - low
        };
        // The normal approximation: 2 x 1.96 x 0.5 / sqrt(n).
        assert!((width(100) - 0.196).abs() < 0.02 && (width(400) - 0.098).abs() < 0.01);
        assert_eq!(Interval::of(&[], 1), Interval { mean: 0.0, low: 0.0, high: 0.0 });
    }
}
