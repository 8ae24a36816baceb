//! How much queued work is due before a given time, in logarithmic time.
//!
//! A Fenwick tree (Fenwick 1994) over a ring of due-time buckets. Work due beyond the ring counts as due at its end,
//! which can only make it look less urgent than it is.

use crate::base::Ns;

/// 4 ms is finer than the shortest useful budget, and 2048 buckets reach 8 s.
const BUCKET_NS: u64 = 4_000_000;
const BUCKETS: u64 = 2048;
/// Work may be overdue by a quarter of the ring before its bucket is mistaken for a future one.
const REACH: u64 = BUCKETS * 3 / 4;

/// Predicted device time by due time.
#[derive(Clone, Debug, Default)]
pub(super) struct Horizon {
    /// A Fenwick tree, one-based; empty until first used, because most tenants never queue.
    tree: Vec<u64>,
    total: u64,
}

/// The bucket in which some work was booked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bucket(u16);

impl Horizon {
    /// The bucket for work that is due at `due`.
    pub fn bucket(now: Ns, due: Ns) -> Bucket {
        let first = now.0 / BUCKET_NS;
        let bucket = (due.0 / BUCKET_NS).clamp(first, first + REACH);
        Bucket((bucket % BUCKETS) as u16)
    }

    /// Adds work to a bucket.
    pub fn add(&mut self, bucket: Bucket, work: Ns) {
        if self.tree.is_empty() {
            self.tree = vec![0; BUCKETS as usize + 1];
        }
        self.total += work.0;
        let mut at = u64::from(bucket.0) + 1;
        while at <= BUCKETS {
            self.tree[at as usize] += work.0;
            at += at & at.wrapping_neg();
        }
    }

    /// Removes work that was added before.
    pub fn remove(&mut self, bucket: Bucket, work: Ns) {
        self.total -= work.0;
        let mut at = u64::from(bucket.0) + 1;
        while at <= BUCKETS && work.0 > 0 {
            self.tree[at as usize] -= work.0;
            at += at & at.wrapping_neg();
        }
    }

    /// Work due at or before `due`, to the width of a bucket.
    pub fn before(&self, now: Ns, due: Ns) -> Ns {
        if self.total == 0 {
            return Ns::ZERO;
        }
        let first = now.0 / BUCKET_NS;
        let bucket = (due.0 / BUCKET_NS).clamp(first, first + REACH);
        // Work due later is in (bucket, first + REACH], which may wrap around the ring.
        let (after, last) = ((bucket + 1) % BUCKETS, (first + REACH) % BUCKETS);
        let later = if bucket == first + REACH {
            0
        } else if after <= last {
            self.prefix(last + 1) - self.prefix(after)
        } else {
            self.total - self.prefix(after) + self.prefix(last + 1)
        };
        Ns(self.total - later)
    }

    /// Whether work due at `due` is so long overdue that its bucket counts as a future one.
    pub fn forgotten(now: Ns, due: Ns) -> bool {
        now.0 / BUCKET_NS >= due.0 / BUCKET_NS + (BUCKETS - REACH)
    }

    /// All work.
    pub fn total(&self) -> Ns {
        Ns(self.total)
    }

    /// Work in the first `count` buckets of the ring.
    fn prefix(&self, count: u64) -> u64 {
        let (mut at, mut sum) = (count, 0);
        while at > 0 {
            sum += self.tree[at as usize];
            at &= at - 1;
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_tree_agrees_with_a_plain_sum(
            start in 0u64..20_000,
            dues in prop::collection::vec((0u64..7_000, 1u64..1_000), 1..80),
            probe in 0u64..7_000,
        ) {
            let now = Ns::from_millis(start);
            let due = |ms: u64| Ns::from_millis(start + ms);
            let mut horizon = Horizon::default();
            for &(ms, work) in &dues {
                horizon.add(Horizon::bucket(now, due(ms)), Ns(work));
            }
            let bucket = |at: Ns| (at.0 / BUCKET_NS).min(now.0 / BUCKET_NS + REACH);
            let plain: u64 = dues.iter()
                .filter(|(ms, _)| bucket(due(*ms)) <= bucket(due(probe)))
                .map(|(_, work)| work)
                .sum();
            prop_assert_eq!(horizon.before(now, due(probe)), Ns(plain));
            for &(ms, work) in &dues {
                horizon.remove(Horizon::bucket(now, due(ms)), Ns(work));
            }
            prop_assert_eq!(horizon.before(now, due(7_000)), Ns::ZERO);
        }
    }

    #[test]
    fn overdue_work_still_counts_as_ahead() {
        let mut horizon = Horizon::default();
        horizon.add(Horizon::bucket(Ns::ZERO, Ns::from_millis(100)), Ns(7));
        assert_eq!(horizon.before(Ns::from_millis(1_500), Ns::from_millis(1_501)), Ns(7));
    }

    #[test]
    fn work_is_forgotten_a_quarter_of_the_ring_after_it_was_due() {
        let at = |bucket: u64| Ns(bucket * BUCKET_NS);
        for (overdue, is_forgotten) in [(0, false), (BUCKETS - REACH - 1, false), (BUCKETS - REACH, true)] {
            assert_eq!(Horizon::forgotten(at(3_000), at(3_000 - overdue)), is_forgotten, "{overdue}");
        }
        // Until then it is before all that is due now, and before nothing that is not.
        let mut horizon = Horizon::default();
        horizon.add(Horizon::bucket(at(1_000), at(1_000)), Ns(7));
        assert_eq!(horizon.before(at(1_000 + BUCKETS - REACH - 1), at(1_000 + BUCKETS - REACH - 1)), Ns(7));
    }

    #[test]
    fn work_that_is_overdue_is_due_now() {
        let at = |bucket: u64| Ns(bucket * BUCKET_NS);
        assert_eq!(Horizon::bucket(at(3_000), at(10)), Horizon::bucket(at(3_000), at(3_000)));
        let mut horizon = Horizon::default();
        horizon.add(Horizon::bucket(at(3_000), at(10)), Ns(7));
        assert_eq!(horizon.before(at(3_000), at(10)), Ns(7));
    }

    #[test]
    fn the_ends_of_the_ring_are_told_apart() {
        // The window is exactly the ring's first buckets, or wraps around it.
        for first in [0, 1, BUCKETS - REACH - 1, BUCKETS - REACH, BUCKETS - REACH + 1, BUCKETS - 1] {
            let at = |bucket: u64| Ns((first + bucket) * BUCKET_NS);
            let mut horizon = Horizon::default();
            for (bucket, work) in [(0, 1), (1, 10), (REACH - 1, 100), (REACH, 1_000)] {
                horizon.add(Horizon::bucket(at(0), at(bucket)), Ns(work));
            }
            for (bucket, before) in
                [(0, 1), (1, 11), (2, 11), (REACH - 2, 11), (REACH - 1, 111), (REACH, 1_111)]
            {
                assert_eq!(horizon.before(at(0), at(bucket)), Ns(before), "{bucket} of {first}");
            }
        }
    }
}
