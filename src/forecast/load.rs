//! What the time of a batch depends on.

use crate::base::DeviceNs;
use serde::{Deserialize, Serialize};
use std::ops::AddAssign;

/// The load of a batch, as far as its time depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// Tokens that are computed.
    pub tokens: u64,
    /// The sum over pairs of the square of their tokens.
    pub squares: u64,
    /// The number of pairs.
    pub pairs: u32,
}

impl Load {
    /// The load of pairs with these lengths in tokens.
    pub fn of(lengths: impl IntoIterator<Item = u32>) -> Self {
        Self::behind(0, lengths)
    }

    /// The load of pairs behind a prefix that they share, with these lengths beyond it, and of the prefix.
    pub fn behind(prefix: u32, lengths: impl IntoIterator<Item = u32>) -> Self {
        let mut load = Self::default();
        load.add_prefix(prefix);
        for length in lengths {
            load.add_behind(prefix, length);
        }
        load
    }

    /// Adds a pair of `length` tokens.
    pub fn add(&mut self, length: u32) {
        self.add_behind(0, length);
    }

    /// Adds a prefix of `tokens` tokens.
    pub fn add_prefix(&mut self, tokens: u32) {
        self.add_tokens(0, tokens);
    }

    /// Adds a pair that has `length` tokens beyond a prefix. Their attention reads the prefix too.
    pub fn add_behind(&mut self, prefix: u32, length: u32) {
        self.add_tokens(prefix, length);
        self.pairs = self.pairs.saturating_add(1);
    }

    fn add_tokens(&mut self, before: u32, tokens: u32) {
        let (before, tokens) = (u64::from(before), u64::from(tokens));
        self.tokens = self.tokens.saturating_add(tokens);
        self.squares = self.squares.saturating_add(tokens.saturating_mul(tokens + 2 * before));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pairs == 0 && self.tokens == 0
    }
}

impl AddAssign for Load {
    fn add_assign(&mut self, other: Self) {
        self.tokens = self.tokens.saturating_add(other.tokens);
        self.squares = self.squares.saturating_add(other.squares);
        self.pairs = self.pairs.saturating_add(other.pairs);
    }
}

/// A batch with its measured time; warm-up runs seed a predictor with these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// The batch.
    pub load: Load,
    /// Its measured time.
    pub took: DeviceNs,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_behind_a_prefix_loads_as_the_whole_less_the_prefix() {
        for (prefix, length) in [(0, 1), (5, 1), (77, 137), (u32::MAX, u32::MAX)] {
            let behind = Load::behind(prefix, [length]);
            let whole = u64::from(prefix) + u64::from(length);
            assert_eq!(behind, Load { tokens: whole, squares: whole.saturating_mul(whole), pairs: 1 });
        }
        let shared = Load::behind(10, [3, 4]);
        assert_eq!(shared, Load { tokens: 17, squares: 13 * 13 + 14 * 14 - 10 * 10, pairs: 2 });
        assert_eq!(Load::of([3, 4]), Load::behind(0, [3, 4]));
        assert_eq!(Load::behind(10, []), Load { tokens: 10, squares: 100, pairs: 0 });
    }
}
