//! How many answers suffice to decide that a service level is met: MLPerf's early-stopping rule.

use std::collections::BTreeMap;

/// The confidence of one look at a rate.
pub const CONFIDENCE: f64 = 0.99;
/// The confidence over all looks at a rate, until 10 answers are over the limit. By simulation a rate exactly at the
/// limit is called good 4 times in 100.
pub const CONFIDENCE_OVERALL: f64 = 0.95;

/// The answers needed, with `over` of them over the limit, to know with 99% confidence that at most `share` of all
/// answers are: the least n with P(X <= over) <= 1% for X binomial(n, share).
///
/// `share` is 0.01 for a p99. This is the "early stopping" of MLPerf's inference rules: for a p99, 459 answers with
/// none over the limit, 662 with one.
pub fn answers_needed(over: u64, share: f64) -> u64 {
    let enough = |n: u64| at_most(over, n, share) <= 1.0 - CONFIDENCE;
    let mut high = 1;
    while !enough(high) {
        high *= 2;
    }
    let mut low = high / 2;
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if enough(middle) { high = middle } else { low = middle }
    }
    high
}

/// P(X <= k) for X binomial(n, p). In logarithms, because its terms can underflow f64.
fn at_most(k: u64, n: u64, p: f64) -> f64 {
    if k >= n {
        return 1.0;
    }
    let odds = p.ln() - (-p).ln_1p();
    let mut term = n as f64 * (-p).ln_1p();
    let mut sum = term.exp();
    for i in 0..k {
        term += ((n - i) as f64 / (i + 1) as f64).ln() + odds;
        sum += term.exp();
    }
    sum
}

/// Answers before which no rate is called bad. The first requests of a run wait for connections, and a stall delays
/// neighbouring requests together, which the binomial model ignores.
const MISSED_ANSWERS_MIN: u64 = 50;

/// The verdict on a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// With 99% confidence at most the allowed share is over the limit.
    Met,
    /// With 99% confidence more than the allowed share is over the limit.
    Missed,
    /// Too few answers for either.
    Undecided,
}

impl Verdict {
    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "missed",
            Self::Undecided => "undecided",
        }
    }
}

/// Judges a rate while its requests are answered. It counts requests in the order of sending, because those answered
/// first are the fast ones.
///
/// It tests for `Met` when the answers suffice with none over the limit; if some are over, again when the answers
/// suffice with that number. So there are few tests, and the overall confidence is [`CONFIDENCE_OVERALL`]. It tests for
/// `Missed` at each answer from the 50th on; a mistake there makes the reported rate too low, not too high.
#[derive(Debug)]
pub struct Judge {
    share: f64,
    /// Results of requests whose predecessors are still open: position, and whether it is over the limit.
    early: BTreeMap<u64, bool>,
    answers: u64,
    over: u64,
    look: u64,
    verdict: Verdict,
}

impl Judge {
    /// `share` of requests may be over the limit, between 0 and 1. No rate is called good before `answers_min` answers,
    /// because a queue grows slowly.
    pub fn new(share: f64, answers_min: u64) -> Self {
        let look = answers_needed(0, share).max(answers_min);
        Self { share, early: BTreeMap::new(), answers: 0, over: 0, look, verdict: Verdict::Undecided }
    }

    /// Records a request by its position in the order of sending, once it is known whether it is over the limit. A
    /// second call for a request has no effect.
    pub fn answered(&mut self, place: u64, over: bool) {
        if place >= self.answers {
            self.early.insert(place, over);
        }
        while self.verdict == Verdict::Undecided
            && let Some(over) = self.early.remove(&self.answers)
        {
            self.answers += 1;
            self.over += u64::from(over);
            self.decide();
        }
    }

    fn decide(&mut self) {
        if self.answers == self.look {
            let needed = answers_needed(self.over, self.share);
            if needed <= self.answers {
                self.verdict = Verdict::Met;
            }
            self.look = needed;
        }
        let enough = self.answers >= MISSED_ANSWERS_MIN && self.over > 0;
        if enough && 1.0 - at_most(self.over - 1, self.answers, self.share) <= 1.0 - CONFIDENCE {
            self.verdict = Verdict::Missed;
        }
    }

    /// The verdict so far.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// The answers counted, and how many of them are over the limit.
    pub fn counts(&self) -> (u64, u64) {
        (self.answers, self.over)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_pcg::Pcg64;

    #[test]
    fn the_answers_needed_are_those_of_mlperf() {
        for (over, needed) in [(0, 459), (1, 662), (5, 1_307), (10, 2_010)] {
            assert_eq!(answers_needed(over, 0.01), needed);
        }
        // 0.9^44 <= 0.01; and a share whose terms underflow f64.
        assert_eq!(answers_needed(0, 0.1), 44);
        let many = answers_needed(1_000, 0.5);
        assert!((2_000..2_300).contains(&many), "{many}");
    }

    fn judge(share: f64, share_over: f64, seed: u64) -> Judge {
        let mut random = Pcg64::seed_from_u64(seed);
        let mut judge = Judge::new(share, 0);
        for place in 0..answers_needed(10, share) {
            judge.answered(place, random.random::<f64>() < share_over);
        }
        judge
    }

    #[test]
    fn good_and_bad_rates_are_told_apart_within_some_hundred_answers() {
        for seed in 0..200 {
            let good = judge(0.01, 0.0, seed);
            assert_eq!((good.verdict(), good.counts()), (Verdict::Met, (459, 0)));
            let bad = judge(0.01, 0.2, seed);
            assert_eq!(bad.verdict(), Verdict::Missed);
            assert!((50..200).contains(&bad.counts().0), "{bad:?}");
        }
    }

    #[test]
    fn a_rate_at_the_very_limit_is_seldom_called_good() {
        for share in [0.01, 0.1] {
            let trials = 2_000;
            let good = |seed: &u64| judge(share, share, *seed).verdict() == Verdict::Met;
            let wrong = (0..trials).filter(good).count() as f64 / trials as f64;
            assert!((0.01..=1.0 - CONFIDENCE_OVERALL).contains(&wrong), "{share}: {wrong}");
        }
    }

    #[test]
    fn no_rate_is_good_before_its_time() {
        let mut judge = Judge::new(0.01, 1_000);
        (0..999).for_each(|place| judge.answered(place, place == 7));
        assert_eq!(judge.verdict(), Verdict::Undecided);
        judge.answered(999, false);
        assert_eq!((judge.verdict(), judge.counts()), (Verdict::Met, (1_000, 1)));
    }

    #[test]
    fn answers_count_in_the_order_of_sending() {
        let mut judge = Judge::new(0.01, 0);
        (1..459).for_each(|place| judge.answered(place, false));
        assert_eq!((judge.verdict(), judge.counts()), (Verdict::Undecided, (0, 0)));
        judge.answered(0, false);
        judge.answered(0, true);
        assert_eq!((judge.verdict(), judge.counts()), (Verdict::Met, (459, 0)));
    }
}
