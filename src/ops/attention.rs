//! Softmax(Q K^T) V within each sequence, a head at a time. Nothing is padded to another sequence's
//! length, and scores exist for one tile of rows at a time, in the first-level cache.

use super::attention_on_tiles::OnTiles;
use super::distances::{BlockOfScores, Sums};
use super::dtype::Float;
use super::epilogue::Epilogue;
use super::linear::{Product, tiles, zeros};
use super::operand::{Operand, RowsMut};
use super::projected::Projected;
use super::simd::tiles::{BLOCK, Tiles};
use super::simd::{Kernel, Simd};
use super::{Buffer, PAD, Reach};
use std::marker::PhantomData;
use std::ops::Range;

/// How a layer's states divide into heads.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Number of heads.
    pub count: usize,
    /// Values of a head, padded to a multiple of [`PAD`].
    pub size: usize,
}

impl Heads {
    /// Values of all heads.
    pub fn width(&self) -> usize {
        self.count * self.size
    }
}

/// Scratch memory of [`attention`].
#[derive(Default)]
pub struct Scratch {
    pub(super) keys: Buffer,
    pub(super) values: Buffer,
    pub(super) scores: Buffer,
    pub(super) weights: Buffer,
    /// Rows of keys or values that lie in several places.
    pub(super) aside: Buffer,
    /// What distances add to scores.
    pub(super) by_distance: Sums,
}

/// What stands for the score of a key before those that a query sees: its weight is no more than 2^-125.
const UNSEEN: f32 = -1e30;

/// Writes the weights of a row's keys, before they are divided by their sum, which it returns. Scores and weights begin with
/// those of key `keys.start`, and weights end at a whole vector. A key after those that the row sees weighs nothing, so
/// that the row's context does not depend on what its tile sees beyond it.
///
/// # Safety
/// `scores` holds a score for each of `keys`, up to a whole vector; as many values may be written to `weights`.
#[inline(always)]
pub(super) unsafe fn weigh<S: Simd, A: Float<S>>(
    simd: S,
    (scores, weights): (*mut f32, *mut u32),
    keys: Range<usize>,
    seen: Range<usize>,
) -> f32 {
    let (before, count) = (seen.start - keys.start, seen.end - keys.start);
    // SAFETY: the caller promises the scores and the room for weights.
    unsafe {
        let mut key = 0;
        while key + S::LANES <= before {
            simd.store(scores.add(key), simd.splat(UNSEEN));
            key += S::LANES;
        }
        (key..before).for_each(|key| *scores.add(key) = UNSEEN);
        let sum = softmax::<S, A>(simd, scores, count, weights);
        for at in (count.next_multiple_of(S::LANES)..keys.len()).step_by(S::LANES) {
            A::store(simd, weights, at, simd.splat(0.0));
        }
        sum
    }
}

/// Attends within one sequence; the contexts of its rows, `[tokens, heads.width()]` in `A`, go into an operand from a row
/// on. A row's context depends on its keys only, whichever rows are computed with it.
pub fn attention<S: Simd, A: Float<S>>(
    simd: S,
    projected: Projected<'_>,
    heads: Heads,
    scratch: &mut Scratch,
    (context, first): (&mut Operand, usize),
) {
    let Projected { tokens, kv_heads, .. } = projected;
    let groups = heads.size / A::GROUP;
    assert!(kv_heads > 0 && heads.count.is_multiple_of(kv_heads), "heads of keys divide those of queries");
    let rows = if A::ON_TILES { tokens.next_multiple_of(BLOCK) } else { tokens };
    let is_whole = heads.size.is_multiple_of(PAD) && projected.is_whole(heads, groups, rows);
    assert!(is_whole, "rows have their parts");
    let is_plain = projected.before.is_empty() && projected.reach == Reach::All;
    let fits = projected.distances.is_none_or(|distances| is_plain && distances.fits::<S, A>(heads));
    assert!(fits, "distances are those of these heads, and between all tokens");
    let padded = projected.sequence().next_multiple_of(PAD);
    let height = S::ROWS.max(BLOCK);
    scratch.keys.grow(padded * groups);
    scratch.values.grow(padded / A::GROUP * heads.size);
    scratch.aside.grow(BLOCK * groups);
    scratch.scores.grow(height * (padded + LINE));
    scratch.weights.grow(height * (padded / A::GROUP + LINE));
    let RowsMut { words: to, stride: to_stride, .. } =
        context.range_mut::<S, A>(first..first + tokens, heads.width());
    let to = to.as_mut_ptr();
    if A::ON_TILES {
        let session = S::Tiles::session();
        simd.launch(OnTiles::<A> { projected, heads, scratch, to, to_stride, _marker: PhantomData });
        return drop(session);
    }
    for head in 0..heads.count {
        simd.launch(Head::<A> { projected, heads, head, scratch, to, to_stride, _marker: PhantomData });
    }
}

/// Unused words after each row, so that rows do not share cache sets.
pub(super) const LINE: usize = 16;

struct Head<'a, A> {
    projected: Projected<'a>,
    heads: Heads,
    head: usize,
    scratch: &'a mut Scratch,
    /// Rows of contexts, `to_stride` words apart, for every token and head.
    to: *mut u32,
    to_stride: usize,
    _marker: PhantomData<A>,
}

impl<S: Simd, A: Float<S>> Kernel<S> for Head<'_, A> {
    type Output = ();
    #[inline(always)]
    fn run(self, simd: S) {
        let Self { projected, heads, head, scratch, to, to_stride, .. } = self;
        let Projected { stride, tokens, .. } = projected;
        let groups = heads.size / A::GROUP;
        let (queries, [keys, values]) = projected.parts(heads, head, groups);
        let sequence = projected.sequence();
        let padded = sequence.next_multiple_of(S::LANES);
        let packed = if projected.begins_group(heads, head) { sequence } else { 0 };
        let aside = scratch.aside.words_mut().as_mut_ptr();
        // SAFETY: `attention` asserted that the parts of every token are there and that the context has a place, and
        // made room in the scratch.
        unsafe {
            // Keys word by word: `[blocks, groups, LANES]`.
            for key in (0..packed).step_by(S::LANES) {
                let count = (packed - key).min(S::LANES);
                let (from, from_stride) = keys.rows(key..key + count, aside);
                for group in (0..groups).step_by(S::LANES) {
                    let to = scratch.keys.words_mut()[key * groups + group * S::LANES..].as_mut_ptr();
                    simd.transpose(from.add(group), from_stride, count, to);
                }
            }
            // Values of as many tokens to a word as a word holds: `[value_groups, size]`.
            for key in (0..packed).step_by(A::GROUP) {
                let count = (packed - key).min(A::GROUP);
                let (from, from_stride) = values.rows(key..key + count, aside);
                for at in (0..heads.size).step_by(S::LANES) {
                    let words = A::pair_rows(simd, from, from_stride, count, at);
                    let to = scratch.values.words_mut()[key / A::GROUP * heads.size + at..].as_mut_ptr();
                    simd.store(to.cast(), simd.as_floats(words));
                }
            }
            let score_stride = padded + LINE;
            let weight_stride = padded / A::GROUP + LINE;
            // What distances add is computed for whole blocks of queries.
            let height = if projected.distances.is_some() { BLOCK } else { S::ROWS };
            let tile_count = tokens.div_ceil(height);
            let mut row = 0;
            for tile in 0..tile_count {
                let rows = match projected.distances {
                    Some(_) => (tokens - row).min(BLOCK),
                    None => (tokens - row).div_ceil(tile_count - tile),
                };
                let product = Product {
                    groups,
                    a: queries.add(row * stride),
                    a_stride: stride,
                    b: scratch.keys.words().as_ptr(),
                    b_step: S::LANES,
                    b_apart: groups * S::LANES,
                    start: zeros(),
                    ahead: std::ptr::null(),
                };
                let scores = Scores { to: scratch.scores.floats_mut().as_mut_ptr(), stride: score_stride };
                let seen = projected.keys(row, rows, S::LANES);
                let mut block = seen.start / S::LANES;
                let blocks = seen.end.div_ceil(S::LANES);
                while block + 2 <= blocks {
                    let product = Product { b: product.b.add(block * groups * S::LANES), ..product };
                    tiles::<S, A, _, 2>(simd, rows, (0, block * S::LANES), product, scores);
                    block += 2;
                }
                if block < blocks {
                    let product = Product { b: product.b.add(block * groups * S::LANES), ..product };
                    tiles::<S, A, _, 1>(simd, rows, (0, block * S::LANES), product, scores);
                }
                if let Some(distances) = projected.distances {
                    let at = BlockOfScores {
                        head,
                        block: tile,
                        rows,
                        queries: (product.a, stride),
                        keys: keys.rows(0..sequence, aside),
                        sequence,
                        scores: (scores.to, score_stride),
                    };
                    distances.add::<S, A>(simd, &mut scratch.by_distance, at);
                }
                let mut inverse = [0.0; BLOCK];
                for (i, inverse) in inverse.iter_mut().enumerate().take(rows) {
                    let scores = scratch.scores.floats_mut()[i * score_stride + seen.start..].as_mut_ptr();
                    let weights =
                        scratch.weights.words_mut()[i * weight_stride + seen.start / A::GROUP..].as_mut_ptr();
                    let own = projected.seen(row + i);
                    *inverse = 1.0 / weigh::<S, A>(simd, (scores, weights), seen.clone(), own);
                }
                let out = Context::<A> {
                    to: to.add(row * to_stride + head * groups),
                    stride: to_stride,
                    size: heads.size,
                    inverse: inverse.as_ptr(),
                    _marker: PhantomData,
                };
                for column in (0..heads.size).step_by(2 * S::LANES) {
                    let first = seen.start / A::GROUP;
                    let product = Product {
                        groups: seen.end.div_ceil(A::GROUP) - first,
                        a: scratch.weights.words().as_ptr().add(first),
                        a_stride: weight_stride,
                        b: scratch.values.words().as_ptr().add(first * heads.size + column),
                        b_step: heads.size,
                        b_apart: S::LANES,
                        start: zeros(),
                        ahead: std::ptr::null(),
                    };
                    tiles::<S, A, _, 2>(simd, rows, (0, column), product, out);
                }
                row += rows;
            }
        }
    }
}

/// Writes 2^(scores - max) in `A`, zeros up to a whole vector, and returns their sum.
///
/// # Safety
/// `count` scores lie behind `scores`, up to a whole vector; as many values may be written to `weights`.
#[inline(always)]
unsafe fn softmax<S: Simd, A: Float<S>>(simd: S, scores: *const f32, count: usize, weights: *mut u32) -> f32 {
    let (whole, rest) = (count / S::LANES * S::LANES, count % S::LANES);
    let lowest = simd.splat(f32::MIN);
    // SAFETY: the caller promises whole vectors.
    unsafe {
        let mut largest = lowest;
        for at in (0..whole).step_by(S::LANES) {
            largest = simd.max(largest, simd.load(scores.add(at)));
        }
        if rest > 0 {
            largest = simd.max(largest, simd.first(rest, simd.load(scores.add(whole)), lowest));
        }
        let largest = simd.splat(simd.largest(largest));
        let mut sum = simd.splat(0.0);
        for at in (0..whole).step_by(S::LANES) {
            let power = A::exp2(simd, simd.sub(simd.load(scores.add(at)), largest));
            sum = simd.add(sum, power);
            A::store(simd, weights, at, power);
        }
        if rest > 0 {
            let power = A::exp2(simd, simd.sub(simd.load(scores.add(whole)), largest));
            let power = simd.first(rest, power, simd.splat(0.0));
            sum = simd.add(sum, power);
            A::store(simd, weights, whole, power);
        }
        simd.sum(sum)
    }
}

/// Stores the scores of a tile of rows in the scratch memory.
#[derive(Clone, Copy)]
struct Scores {
    to: *mut f32,
    stride: usize,
}

impl<S: Simd> Epilogue<S> for Scores {
    fn fits(&self, rows: usize, columns: usize) -> bool {
        rows <= S::ROWS && columns <= self.stride
    }
    #[inline(always)]
    unsafe fn put(self, simd: S, row: usize, column: usize, values: S::V) {
        // SAFETY: `fits` agreed.
        unsafe { simd.store(self.to.add(row * self.stride + column), values) };
    }
}

/// Contexts of a tile of rows in one head, divided by the sums of their weights.
struct Context<A> {
    to: *mut u32,
    stride: usize,
    /// Values of the head.
    size: usize,
    /// `[ROWS]`.
    inverse: *const f32,
    _marker: PhantomData<A>,
}

impl<A> Clone for Context<A> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<A> Copy for Context<A> {}

impl<S: Simd, A: Float<S>> Epilogue<S> for Context<A> {
    fn fits(&self, rows: usize, columns: usize) -> bool {
        rows <= S::ROWS && columns <= self.size
    }
    #[inline(always)]
    unsafe fn put(self, simd: S, row: usize, column: usize, values: S::V) {
        // SAFETY: `fits` agreed.
        unsafe {
            let values = simd.mul(values, simd.splat(*self.inverse.add(row)));
            A::store(simd, self.to.add(row * self.stride), column, values);
        }
    }
}

/// Softmax(Q K^T) V in f64 from queries, keys and values, each `[tokens, width]`, to the shape of the queries, which are
/// scaled as those of [`attention`]. Keys and values may have fewer heads.
pub fn attention_reference(
    query: &[f32],
    key: &[f32],
    value: &[f32],
    heads: Heads,
    reach: Reach,
) -> Vec<f32> {
    attend_reference([query, key, value], heads, reach, |_, _, _| 0.0)
}

/// The same; `more` is added to the score of a head, a query and a key.
pub(super) fn attend_reference(
    [query, key, value]: [&[f32]; 3],
    heads: Heads,
    reach: Reach,
    more: impl Fn(usize, usize, usize) -> f64,
) -> Vec<f32> {
    let width = heads.width();
    let tokens = query.len() / width;
    let kv_width = key.len() / tokens;
    let group = width / kv_width;
    let mut context = vec![0.0; query.len()];
    for head in 0..heads.count {
        let values_of = |states: &[f32], start: usize| -> Vec<f64> {
            states[start..start + heads.size].iter().map(|&value| f64::from(value)).collect()
        };
        let row =
            |states: &[f32], token: usize| values_of(states, token * kv_width + head / group * heads.size);
        for token in 0..tokens {
            let asked = values_of(query, token * width + head * heads.size);
            let is_seen = |other: &usize| reach.keys(token, tokens).contains(other);
            let score = |other: usize| match is_seen(&other) {
                true => {
                    let product: f64 = std::iter::zip(&asked, row(key, other)).map(|(q, k)| q * k).sum();
                    product + more(head, token, other)
                }
                false => f64::NEG_INFINITY,
            };
            let scores: Vec<f64> = (0..tokens).map(score).collect();
            let largest = scores.iter().copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp2()).collect();
            let sum: f64 = weights.iter().sum();
            for (index, place) in
                (0..heads.size).map(|index| (index, token * width + head * heads.size + index))
            {
                let mixed = (0..tokens).map(|other| weights[other] * row(value, other)[index]);
                context[place] = (mixed.sum::<f64>() / sum) as f32;
            }
        }
    }
    context
}
