//! Decides when a run of unexpected batches means that the device has changed.

use smallvec::SmallVec;

/// This many consecutive batches beyond the margin mean a change. Other load can make a batch slower than the device is,
/// but not faster. So fewer fast batches suffice, and one does if the estimate comes from warm-up alone.
const SURPRISES_SLOW: usize = 3;
const SURPRISES_FAST: usize = 2;

/// A run of consecutive unexpected batches in one direction.
#[derive(Clone, Debug, Default)]
pub(super) struct Run {
    /// Ratios of measured to predicted time, all above 1 or all below.
    ratios: SmallVec<[f64; SURPRISES_SLOW]>,
}

impl Run {
    /// Adds a batch. An expected batch or one in the other direction ends the run.
    pub fn push(&mut self, ratio: f64, is_surprise: bool) {
        if !is_surprise || self.ratios.first().is_some_and(|first| (*first > 1.0) != (ratio > 1.0)) {
            self.ratios.clear();
        }
        if is_surprise {
            self.ratios.push(ratio);
        }
    }

    /// The number of batches.
    pub fn len(&self) -> usize {
        self.ratios.len()
    }

    /// Ends the run.
    pub fn clear(&mut self) {
        self.ratios.clear();
    }

    /// The factor by which the device has changed; none while the run is too short. It is the ratio nearest to 1, so that a
    /// stall in the run does not count more than the others. `is_confirmed` says whether a batch has confirmed the estimate
    /// before.
    pub fn change(&self, is_confirmed: bool) -> Option<f64> {
        let slower = *self.ratios.first()? > 1.0;
        let needed = match (slower, is_confirmed) {
            (true, _) => SURPRISES_SLOW,
            (false, true) => SURPRISES_FAST,
            (false, false) => 1,
        };
        if self.ratios.len() < needed {
            return None;
        }
        self.ratios.iter().copied().reduce(if slower { f64::min } else { f64::max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(ratios: &[(f64, bool)], is_confirmed: bool) -> Option<f64> {
        let mut run = Run::default();
        ratios.iter().for_each(|&(ratio, is_surprise)| run.push(ratio, is_surprise));
        run.change(is_confirmed)
    }

    #[test]
    fn three_slow_batches_in_a_row_are_a_change_and_two_fast_ones() {
        assert_eq!(change(&[(2.0, true), (3.0, true)], true), None);
        assert_eq!(change(&[(2.0, true), (50.0, true), (3.0, true)], true), Some(2.0));
        assert_eq!(change(&[(1.5, true), (1.3, true), (1.5, true)], true), Some(1.3));
        assert_eq!(change(&[(1.3, true), (0.7, true), (1.3, true), (1.3, true)], true), None);
        assert_eq!(change(&[(0.5, true)], true), None);
        assert_eq!(change(&[(0.5, true), (0.4, true)], true), Some(0.5));
        assert_eq!(change(&[(0.5, true)], false), Some(0.5));
        assert_eq!(change(&[(2.0, true), (2.0, true)], false), None);
    }

    #[test]
    fn a_batch_as_predicted_or_in_the_other_direction_ends_a_run() {
        assert_eq!(change(&[(2.0, true), (2.0, true), (1.0, false), (2.0, true)], true), None);
        assert_eq!(change(&[(2.0, true), (2.0, true), (1.1, false), (2.0, true)], true), None);
        assert_eq!(change(&[(2.0, true), (2.0, true), (0.5, true), (2.0, true)], true), None);
    }

    #[test]
    fn a_run_that_ended_is_empty() {
        let mut run = Run::default();
        assert_eq!((run.len(), run.change(true)), (0, None));
        (0..3).for_each(|_| run.push(2.0, true));
        assert_eq!((run.len(), run.change(true)), (3, Some(2.0)));
        run.clear();
        assert_eq!((run.len(), run.change(true)), (0, None));
    }
}
