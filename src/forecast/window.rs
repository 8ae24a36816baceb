//! The latest relative errors of a predictor, in order of time and of size.

use crate::base::Ns;
use std::collections::VecDeque;

/// The largest number of batches in the window; the third largest of 256 is the 99th percentile.
const SIZE: usize = 256;
/// The assumption before the first batches: one in 32 takes a tenth longer than predicted.
const LATE: f32 = 1.1;
/// The number of batches that stay in the window at any age; the second largest of 64 is the 98th percentile.
const LEAST: usize = 64;
/// Beyond [`LEAST`], batches older than this are forgotten: noise that has ended must not widen budgets for long.
const MEMORY: Ns = Ns::from_millis(4_000);
/// Bounds the margin. A lane that is late by more in one batch of a hundred has faults, which hedges handle; a wider
/// margin would refuse too many requests.
const MARGIN_MAX: f32 = 4.0;
/// The least margin, for effects that no batch shows, such as clock ticks.
const MARGIN_MIN: f32 = 1.01;
/// A ratio nearer to 1 than this is expected: with noise of 5%, two larger ones in a row would be common otherwise.
const SURPRISE_MIN: f32 = 1.25;

/// The ratios of measured to predicted time of the latest batches, with their 99th percentile.
#[derive(Clone, Debug)]
pub(super) struct Window {
    /// The oldest in front, and before all batches the assumptions.
    ring: VecDeque<(Ns, f32)>,
    sorted: Vec<f32>,
    /// How many of them are assumptions.
    assumed: usize,
}

impl Window {
    /// A window of assumptions, which the first batches replace.
    pub(super) fn new() -> Self {
        let mut sorted = vec![1.0; SIZE];
        sorted[SIZE - SIZE / 32..].fill(LATE);
        // The assumed late batches are at the end of the ring, so that they are replaced last.
        let ring = sorted.iter().map(|&ratio| (Ns::ZERO, ratio)).collect();
        Self { ring, sorted, assumed: SIZE }
    }

    /// Adds the newest ratio and forgets the oldest ones.
    pub(super) fn push(&mut self, now: Ns, ratio: f64) {
        // Clipped, so that sums stay finite.
        let ratio = ratio.clamp(1e-3, 1e3) as f32;
        while self.ring.len() >= SIZE || self.ring.len() >= LEAST && self.is_oldest_stale(now) {
            self.drop_oldest();
        }
        self.ring.push_back((now, ratio));
        self.sorted.insert(self.sorted.partition_point(|&value| value < ratio), ratio);
    }

    /// Removes the newest ratios, which a change of the prediction has made obsolete.
    pub(super) fn pop(&mut self, count: usize) {
        for _ in 0..count.min(self.ring.len() - self.assumed) {
            let (_, ratio) = self.ring.pop_back().expect("the count is bounded");
            self.unsort(ratio);
        }
    }

    /// The factor on a prediction that covers 99 of 100 batches; at least 1.
    pub(super) fn p99(&self) -> f64 {
        f64::from(self.largest(self.outside()).clamp(MARGIN_MIN, MARGIN_MAX))
    }

    /// The ratios below and above which a batch is unexpected: the most extreme hundredth on either side, and at least a
    /// quarter off. The latest `run` batches, which were unexpected themselves, do not widen these bounds.
    pub(super) fn surprises(&self, run: usize) -> (f64, f64) {
        let outside = self.outside() + run;
        let low =
            self.sorted.get(outside).copied().unwrap_or(1.0).clamp(1.0 / MARGIN_MAX, 1.0 / SURPRISE_MIN);
        (f64::from(low), f64::from(self.largest(outside).clamp(SURPRISE_MIN, MARGIN_MAX)))
    }

    /// The mean distance of the measured ratios from 1; 0 without any.
    pub(super) fn mean_error(&self) -> f64 {
        let seen = self.ring.iter().skip(self.assumed);
        let sum: f64 = seen.map(|&(_, ratio)| (f64::from(ratio) - 1.0).abs()).sum();
        sum / (self.ring.len() - self.assumed).max(1) as f64
    }

    /// A hundredth of the ratios, at least one.
    fn outside(&self) -> usize {
        (self.sorted.len() / 100).max(1)
    }

    /// The largest ratio after leaving out the `but` largest.
    fn largest(&self, but: usize) -> f32 {
        self.sorted.iter().rev().nth(but).copied().unwrap_or(LATE)
    }

    fn is_oldest_stale(&self, now: Ns) -> bool {
        let fresh = |&(at, _): &(Ns, f32)| now.saturating_sub(at) <= MEMORY;
        !self.ring.front().is_some_and(fresh)
    }

    fn drop_oldest(&mut self) {
        if let Some((_, ratio)) = self.ring.pop_front() {
            self.assumed = self.assumed.saturating_sub(1);
            self.unsort(ratio);
        }
    }

    fn unsort(&mut self, ratio: f32) {
        self.sorted.remove(self.sorted.partition_point(|&value| value < ratio));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn two_stalls_do_not_widen_the_margin_and_three_do() {
        let mut window = Window::new();
        (0..SIZE).for_each(|_| window.push(Ns::ZERO, 1.0));
        window.push(Ns::ZERO, 50.0);
        window.push(Ns::ZERO, 50.0);
        assert!(window.p99() < 1.02);
        window.push(Ns::ZERO, 50.0);
        assert_eq!(window.p99(), f64::from(MARGIN_MAX));
    }

    #[test]
    fn a_run_does_not_widen_the_bounds_by_which_it_is_judged() {
        let mut window = Window::new();
        (0..SIZE).for_each(|_| window.push(Ns::ZERO, 1.0));
        (0..3).for_each(|_| window.push(Ns::ZERO, 2.0));
        assert_eq!((window.surprises(0).1, window.surprises(3).1), (2.0, f64::from(SURPRISE_MIN)));
    }

    #[test]
    fn assumptions_hold_until_there_is_something_better() {
        let mut window = Window::new();
        assert_eq!((window.p99(), window.mean_error()), (f64::from(LATE), 0.0));
        (0..SIZE).for_each(|_| window.push(Ns::ZERO, 1.0));
        assert!(window.p99() < 1.02);
    }

    #[test]
    fn noise_that_has_ended_leaves_the_margin_after_four_seconds() {
        let mut window = Window::new();
        (0..SIZE as u64).for_each(|at| window.push(Ns::from_millis(at), if at % 8 == 0 { 3.0 } else { 1.0 }));
        assert!(window.p99() >= 3.0);
        (0..90).for_each(|at| window.push(Ns::from_millis(1_000 + 50 * at), 1.0));
        assert!(window.p99() < 1.02, "{}", window.p99());
    }

    #[test]
    fn ratios_that_are_taken_back_leave_no_trace() {
        let mut window = Window::new();
        (0..SIZE).for_each(|_| window.push(Ns::ZERO, 1.0));
        (0..3).for_each(|_| window.push(Ns::ZERO, 50.0));
        window.pop(3);
        assert!(window.p99() < 1.02);
    }

    proptest! {
        #[test]
        fn both_orders_hold_the_same_ratios(ratios in prop::collection::vec(0.0..5.0_f64, 0..600)) {
            let mut window = Window::new();
            for ratio in ratios {
                window.push(Ns::ZERO, ratio);
                let mut ring: Vec<f32> = window.ring.iter().map(|&(_, ratio)| ratio).collect();
                ring.sort_by(f32::total_cmp);
                prop_assert_eq!(ring, window.sorted.clone());
            }
        }
    }

    #[test]
    fn the_margin_and_what_is_expected_are_bounded() {
        let mut window = Window::new();
        (0..SIZE).for_each(|_| window.push(Ns::ZERO, 1.0));
        assert_eq!(window.p99(), f64::from(MARGIN_MIN));
        let surprise = f64::from(SURPRISE_MIN);
        assert_eq!(window.surprises(0), (f64::from(1.0 / SURPRISE_MIN), surprise));
        // The third from either end decides.
        [0.5, 0.5, 2.0, 2.0].into_iter().for_each(|ratio| window.push(Ns::ZERO, ratio));
        assert_eq!(window.surprises(0).1, surprise);
        [0.5, 2.0].into_iter().for_each(|ratio| window.push(Ns::ZERO, ratio));
        assert_eq!((window.surprises(0), window.p99()), ((0.5, 2.0), 2.0));
        (0..3).for_each(|_| window.push(Ns::ZERO, f64::INFINITY));
        (0..3).for_each(|_| window.push(Ns::ZERO, 0.0));
        let most = f64::from(MARGIN_MAX);
        assert_eq!((window.surprises(0), window.p99()), ((1.0 / most, most), most));
        assert_eq!(window.ring.len(), SIZE);
        assert!(
            window.mean_error() < 15.0,
            "three ratios are clipped to a thousand: {}",
            window.mean_error()
        );
    }

    #[test]
    fn the_last_64_stay_at_any_age_and_one_of_them_may_be_a_stall() {
        let mut window = Window::new();
        (0..SIZE).for_each(|_| window.push(Ns::ZERO, 1.0));
        window.push(MEMORY, 1.0);
        assert_eq!(window.ring.len(), SIZE, "four seconds are not too old");
        window.push(MEMORY + Ns(1), 1.0);
        assert_eq!(window.ring.len(), LEAST);
        window.push(Ns(2 * MEMORY.0), 50.0);
        assert_eq!((window.ring.len(), window.p99()), (LEAST, f64::from(MARGIN_MIN)));
        window.push(Ns(2 * MEMORY.0), 50.0);
        assert_eq!(window.p99(), f64::from(MARGIN_MAX));
    }

    #[test]
    fn assumptions_are_no_measurements() {
        let mut window = Window::new();
        [1.5, 0.75].into_iter().for_each(|ratio| window.push(Ns::ZERO, ratio));
        assert_eq!(window.mean_error(), 0.375);
        window.pop(9);
        assert_eq!((window.ring.len(), window.mean_error(), window.p99()), (SIZE - 2, 0.0, f64::from(LATE)));
    }

    #[test]
    fn one_in_32_is_assumed_to_be_late_until_it_is_measured() {
        let mut window = Window::new();
        (0..SIZE - 3).for_each(|_| window.push(Ns::ZERO, 1.0));
        assert_eq!(window.p99(), f64::from(LATE));
        window.push(Ns::ZERO, 1.0);
        assert_eq!(window.p99(), f64::from(MARGIN_MIN));
        assert_eq!(window.sorted.iter().filter(|&&ratio| ratio == LATE).count(), 2);
        assert_eq!(Window::new().sorted.iter().filter(|&&ratio| ratio == LATE).count(), 8);
        let mut window = Window::new();
        window.push(Ns::ZERO, 0.0);
        assert!((window.mean_error() - 0.999).abs() < 1e-6);
    }

    #[test]
    fn ratios_of_the_last_four_seconds_stay() {
        let mut window = Window::new();
        (0..=SIZE).for_each(|_| window.push(Ns::from_millis(5_000), 1.0));
        window.push(Ns::from_millis(6_000), 1.0);
        assert_eq!(window.ring.len(), SIZE);
    }
}
