//! Attention on tiles: what [`attention`](super::attention) does where its dtype has them.
//!
//! A head's queries already have the layout of tiles. Its keys are transposed word by word and its values are paired by
//! tokens, once for all rows. Then, for 32 rows at a time: scores for all keys, softmax on scores in the first-level cache,
//! contexts.

use super::attention::{Heads, LINE, Scratch, weigh};
use super::distances::BlockOfScores;
use super::dtype::Float;
use super::linear::zeros;
use super::projected::{OneHead, Projected};
use super::simd::tiles::{BLOCK, Block, TILE};
use super::simd::{Kernel, Simd};
use std::marker::PhantomData;

/// All heads of a sequence.
pub(super) struct OnTiles<'a, A> {
    pub projected: Projected<'a>,
    pub heads: Heads,
    /// Has room for the sequence's keys and values, and for 32 rows of scores and weights.
    pub scratch: &'a mut Scratch,
    /// Rows of contexts, `to_stride` words apart, for every token and head.
    pub to: *mut u32,
    pub to_stride: usize,
    pub _marker: PhantomData<A>,
}

/// A head's contexts of 32 rows, 32 columns at a time.
#[repr(C, align(64))]
struct Sums([u32; BLOCK * BLOCK]);

impl<S: Simd, A: Float<S>> Kernel<S> for OnTiles<'_, A> {
    type Output = ();
    #[inline(always)]
    fn run(self, simd: S) {
        let Self { projected, heads, scratch, to, to_stride, .. } = self;
        let Projected { words, stride, tokens, .. } = projected;
        let sequence = projected.sequence();
        let groups = heads.size / A::GROUP;
        let padded = sequence.next_multiple_of(BLOCK);
        let (score_stride, weight_stride) = (padded + LINE, padded / A::GROUP + LINE);
        let keys = scratch.keys.words_mut().as_mut_ptr();
        let values = scratch.values.words_mut().as_mut_ptr();
        let scores = scratch.scores.floats_mut().as_mut_ptr();
        let weights = scratch.weights.words_mut().as_mut_ptr();
        let aside = scratch.aside.words_mut().as_mut_ptr();
        let mut sums = Sums([0; BLOCK * BLOCK]);
        let sums = sums.0.as_mut_ptr();
        let same = Block {
            rows: 0,
            steps: 0,
            a: words.as_ptr(),
            a_stride: stride,
            b: keys,
            b_stride: TILE,
            b_apart: groups * TILE,
            start: zeros(),
            start_stride: 0,
            sums,
            sums_stride: BLOCK,
            fetch: words.as_ptr(),
            fetch_lines: 0,
        };
        for head in 0..heads.count {
            // SAFETY: `attention` asserted that the parts of every token are there, and whole tiles of queries behind
            // the last one, made room in the scratch and for the contexts, and keeps the session.
            unsafe {
                let (own_queries, [own_keys, own_values]) = projected.parts(heads, head, groups);
                if projected.begins_group(heads, head) {
                    pack_keys(simd, (own_keys, sequence), groups, (keys, aside));
                    pack_values::<S, A>(simd, (own_values, sequence), heads.size, (values, aside));
                }
                for row in (0..tokens).step_by(BLOCK) {
                    let rows = (tokens - row).min(BLOCK);
                    let seen = projected.keys(row, rows, BLOCK);
                    let end = seen.end.next_multiple_of(BLOCK);
                    for key in (seen.start..end).step_by(BLOCK) {
                        A::multiply(&Block {
                            rows,
                            steps: groups / TILE,
                            a: own_queries.add(row * stride),
                            b: keys.add(key * groups),
                            sums: scores.add(key).cast(),
                            sums_stride: score_stride,
                            ..same
                        });
                    }
                    if let Some(distances) = projected.distances {
                        let at = BlockOfScores {
                            head,
                            block: row / BLOCK,
                            rows,
                            queries: (own_queries.add(row * stride), stride),
                            keys: own_keys.rows(0..sequence, aside),
                            sequence,
                            scores: (scores, score_stride),
                        };
                        distances.add::<S, A>(simd, &mut scratch.by_distance, at);
                    }
                    let mut inverse = [0.0; BLOCK];
                    for (i, inverse) in inverse.iter_mut().enumerate().take(rows) {
                        let weights = weights.add(i * weight_stride + seen.start / A::GROUP);
                        let scores = scores.add(i * score_stride + seen.start);
                        let own = projected.seen(row + i);
                        *inverse = 1.0 / weigh::<S, A>(simd, (scores, weights), seen.start..end, own);
                    }
                    for column in (0..heads.size).step_by(BLOCK) {
                        A::multiply(&Block {
                            rows,
                            steps: (end - seen.start) / A::GROUP / TILE,
                            a: weights.add(seen.start / A::GROUP),
                            a_stride: weight_stride,
                            b: values.add(seen.start / A::GROUP * heads.size + column),
                            b_stride: heads.size,
                            b_apart: TILE,
                            ..same
                        });
                        for (i, &inverse) in inverse.iter().enumerate().take(rows) {
                            let to = to.add((row + i) * to_stride + head * groups);
                            for at in [0, TILE] {
                                let sums = simd.load(sums.add(i * BLOCK + at).cast());
                                A::store(simd, to, column + at, simd.mul(sums, simd.splat(inverse)));
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Keys word by word, 16 at a time: `[keys / 16, groups, 16]`, zeros up to a whole block.
///
/// # Safety
/// All `tokens` keys are there, and whole blocks of them have room behind `to`, and a block behind `aside`.
#[inline(always)]
unsafe fn pack_keys<S: Simd>(
    simd: S,
    (from, tokens): (OneHead<'_>, usize),
    groups: usize,
    (to, aside): (*mut u32, *mut u32),
) {
    for key in (0..tokens.next_multiple_of(BLOCK)).step_by(TILE) {
        let rows = tokens.saturating_sub(key).min(TILE);
        // SAFETY: the caller promises the rows that are there, and room for all.
        unsafe {
            let (from, stride) = from.rows(key..key + rows, aside);
            for group in (0..groups).step_by(TILE) {
                simd.transpose(from.wrapping_add(group), stride, rows, to.add(key * groups + group * TILE));
            }
        }
    }
}

/// Values of as many tokens to a word as a word holds: `[tokens / GROUP, size]`, zeros up to a whole block.
///
/// # Safety
/// All `tokens` rows of `size` values are there, and whole blocks of them have room behind `to`, and a block behind
/// `aside`.
#[inline(always)]
unsafe fn pack_values<S: Simd, A: Float<S>>(
    simd: S,
    (from, tokens): (OneHead<'_>, usize),
    size: usize,
    (to, aside): (*mut u32, *mut u32),
) {
    for first in (0..tokens.next_multiple_of(BLOCK)).step_by(A::GROUP) {
        let rows = tokens.saturating_sub(first).min(A::GROUP);
        // SAFETY: the caller promises the rows that are there, and room for all.
        unsafe {
            let (from, stride) = from.rows(first..first + rows, aside);
            for at in (0..size).step_by(S::LANES) {
                let words = match rows {
                    0 => simd.splat_word(0),
                    rows => A::pair_rows(simd, from, stride, rows, at),
                };
                simd.store(to.add(first / A::GROUP * size + at).cast(), simd.as_floats(words));
            }
        }
    }
}
