//! A search for the highest good rate by bisection.

/// Doubles or halves a first rate until one rate is good and one is not, then bisects the ratio between them.
/// Deterministic in the verdicts.
#[derive(Clone, Debug)]
pub struct Search {
    first: f64,
    limits: (f64, f64),
    ratio: f64,
    good: Option<f64>,
    bad: Option<f64>,
}

impl Search {
    /// Searches from `first` within `limits` (least and greatest), until the ratio of the bad rate to the good one is
    /// at most `ratio`, which is more than 1.
    pub fn new(first: f64, limits: (f64, f64), ratio: f64) -> Self {
        Self { first, limits, ratio, good: None, bad: None }
    }

    /// The rate to try next; none when the search is over.
    pub fn next(&self) -> Option<f64> {
        let (least, greatest) = self.limits;
        match (self.good, self.bad) {
            (None, None) => Some(self.first),
            (Some(good), None) => (good < greatest).then(|| (2.0 * good).min(greatest)),
            (None, Some(bad)) => (bad > least).then(|| (bad / 2.0).max(least)),
            (Some(good), Some(bad)) => (bad / good > self.ratio).then(|| (good * bad).sqrt()),
        }
    }

    /// Records the verdict on the rate to try.
    pub fn tell(&mut self, rate: f64, good: bool) {
        let side = if good { &mut self.good } else { &mut self.bad };
        *side = Some(rate);
    }

    /// The highest good rate.
    pub fn good(&self) -> Option<f64> {
        self.good
    }

    /// The lowest bad rate.
    pub fn bad(&self) -> Option<f64> {
        self.bad
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search(first: f64, capacity: f64) -> (Search, usize) {
        let mut search = Search::new(first, (0.1, 1_000.0), 1.05);
        let mut steps = 0;
        while let Some(rate) = search.next() {
            search.tell(rate, rate <= capacity);
            steps += 1;
        }
        (search, steps)
    }

    #[test]
    fn the_capacity_is_found_from_either_side_in_few_steps() {
        for first in [0.1, 1.0, 37.0, 1_000.0] {
            for capacity in [0.3, 7.7, 36.9, 999.0] {
                let (found, steps) = search(first, capacity);
                let (good, bad) = (found.good().unwrap(), found.bad().unwrap());
                assert!(good <= capacity && capacity < bad && bad / good <= 1.05, "{found:?}");
                assert!(steps <= 20, "{steps} steps from {first} to {capacity}");
            }
        }
    }

    #[test]
    fn limits_end_the_search() {
        let (all_good, _) = search(10.0, 1e9);
        assert_eq!((all_good.good(), all_good.bad()), (Some(1_000.0), None));
        let (none_good, _) = search(10.0, 0.0);
        assert_eq!((none_good.good(), none_good.bad()), (None, Some(0.1)));
    }
}
