//! The last relative errors of a predictor, in order of time and in order of size.

/// How many batches it looks back on; the third largest of 256 is the 99th percentile.
const SIZE: usize = 256;
const RANK: usize = SIZE - 3;
/// What is assumed of batches not yet seen: one in 32 is a tenth late.
const LATE: f32 = 1.1;
/// Bounds the margin. A lane that is late by more in one batch of a hundred has faults, and faults
/// are what hedges are for; a wider margin would refuse everybody.
const MARGIN_MAX: f32 = 4.0;
/// The margin of a device without any noise, for what a batch does not show: clocks tick.
const MARGIN_MIN: f32 = 1.01;

/// Ratios of measured to predicted time of the last batches, with their 99th percentile at hand.
#[derive(Clone, Debug)]
pub(super) struct Window {
    ring: Box<[f32; SIZE]>,
    sorted: Box<[f32; SIZE]>,
    seen: u64,
}

impl Window {
    /// A window full of assumptions, which the first batches replace.
    pub(super) fn new() -> Self {
        let mut sorted = Box::new([1.0; SIZE]);
        sorted[SIZE - SIZE / 32..].fill(LATE);
        // In the ring the late ones stand last, so that they go last.
        Self { ring: sorted.clone(), sorted, seen: 0 }
    }

    /// Replaces the oldest ratio.
    pub(super) fn push(&mut self, ratio: f64) {
        // Past this a ratio is only "huge"; and sums stay finite.
        let ratio = ratio.clamp(1e-3, 1e3) as f32;
        let slot = (self.seen % SIZE as u64) as usize;
        let old = std::mem::replace(&mut self.ring[slot], ratio);
        self.seen += 1;
        let from = self.sorted.partition_point(|&value| value < old);
        let to = self.sorted.partition_point(|&value| value < ratio);
        if from < to {
            self.sorted[from..to].rotate_left(1);
            self.sorted[to - 1] = ratio;
        } else {
            self.sorted[to..=from].rotate_right(1);
            self.sorted[to] = ratio;
        }
    }

    /// The factor on a prediction that covers 99 of 100 batches; at least 1.
    pub(super) fn p99(&self) -> f64 {
        f64::from(self.sorted[RANK].clamp(MARGIN_MIN, MARGIN_MAX))
    }

    /// The mean distance of the seen ratios from 1; 0 before the first.
    pub(super) fn mean_error(&self) -> f64 {
        let seen = self.seen.min(SIZE as u64) as usize;
        let sum: f64 = self.ring[..seen].iter().map(|&ratio| (f64::from(ratio) - 1.0).abs()).sum();
        sum / seen.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn two_stalls_do_not_widen_the_margin_and_three_do() {
        let mut window = Window::new();
        (0..SIZE).for_each(|_| window.push(1.0));
        window.push(50.0);
        window.push(50.0);
        assert!(window.p99() < 1.02);
        window.push(50.0);
        assert_eq!(window.p99(), f64::from(MARGIN_MAX));
    }

    #[test]
    fn assumptions_hold_until_there_is_something_better() {
        let mut window = Window::new();
        assert_eq!((window.p99(), window.mean_error()), (f64::from(LATE), 0.0));
        (0..SIZE).for_each(|_| window.push(1.0));
        assert!(window.p99() < 1.02);
    }

    proptest! {
        #[test]
        fn both_orders_hold_the_same_ratios(ratios in prop::collection::vec(0.0..5.0_f64, 0..600)) {
            let mut window = Window::new();
            for ratio in ratios {
                window.push(ratio);
                let mut ring = *window.ring;
                ring.sort_by(f32::total_cmp);
                prop_assert_eq!(ring, *window.sorted);
            }
        }
    }
}
