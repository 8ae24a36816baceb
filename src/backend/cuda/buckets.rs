//! The batch sizes for which a forward is recorded, and how a batch is split to fit them.

use crate::ops::cuda::Bucket;
use crate::token::Packed;
use std::ops::Range;

/// Tokens of the smallest bucket.
const TOKENS_MIN: u32 = 128;
/// Tokens per sequence of a bucket. Pairs are seldom shorter, and the last layer, with one row per sequence, costs a
/// sixteenth of another layer.
const SEQUENCE_TOKENS: u32 = 16;
/// Buckets between two powers of two; at most a fifth of a bucket is empty.
const STEPS: u32 = 4;

/// The buckets from the smallest up to the first that holds `tokens_max`.
pub(super) fn buckets(tokens_max: u32) -> Vec<Bucket> {
    let mut buckets = Vec::new();
    let mut tokens = TOKENS_MIN;
    loop {
        buckets.push(Bucket { tokens, sequences: tokens / SEQUENCE_TOKENS });
        if tokens >= tokens_max {
            return buckets;
        }
        tokens += (1 << tokens.ilog2()) / STEPS;
    }
}

/// Whether a bucket holds this many tokens and sequences.
pub(super) fn fits(bucket: Bucket, tokens: usize, sequences: usize) -> bool {
    tokens <= bucket.tokens as usize && sequences <= bucket.sequences as usize
}

/// Splits a batch into ranges of whole sequences that fit the largest bucket.
pub(super) fn runs(batch: &Packed, largest: Bucket) -> Vec<Range<usize>> {
    let starts = batch.starts();
    let mut runs: Vec<Range<usize>> = Vec::new();
    for sequence in 0..batch.len() {
        match runs.last_mut() {
            Some(run)
                if fits(
                    largest,
                    (starts[sequence + 1] - starts[run.start]) as usize,
                    sequence + 1 - run.start,
                ) =>
            {
                run.end += 1;
            }
            _ => runs.push(sequence..sequence + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_waste_at_most_a_fifth() {
        let buckets = buckets(5000);
        let sizes: Vec<u32> = buckets.iter().map(|bucket| bucket.tokens).collect();
        assert_eq!(sizes[..9], [128, 160, 192, 224, 256, 320, 384, 448, 512]);
        assert_eq!(*sizes.last().unwrap(), 5120);
        assert!(sizes.windows(2).all(|pair| pair[1] * 4 <= pair[0] * 5));
    }

    #[test]
    fn runs_are_whole_sequences_within_the_largest_bucket() {
        let largest = Bucket { tokens: 100, sequences: 3 };
        let mut batch = Packed::default();
        for length in [60, 40, 1, 90, 1, 1, 1, 100] {
            batch.push((0..length).map(|_| (1, 0)));
        }
        assert_eq!(runs(&batch, largest), [0..2, 2..5, 5..7, 7..8]);
        assert!(runs(&Packed::default(), largest).is_empty());
    }
}
