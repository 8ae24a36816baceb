//! Scores by distance: to the score of a query i and a key j of a head, q_i K(j - i) + k_j Q(j - i) is added, where K and Q are
//! the embeddings of distances as keys and as queries (He et al. 2021, "disentangled attention").
//!
//! Both terms are products with a table whose columns are distances; distances that share an embedding have equal
//! columns. 32 queries and n keys have n + 31 distances, so that a block of queries takes n + 32 columns. Queries follow
//! one another in its sums as rows that are shifted by one column each, and are read so. The sums of keys run across the
//! scores: squares of them are transposed, whose rows begin one column later each. A column of keys' sums serves two
//! blocks of queries.

use super::attention::{Heads, LINE, attend_reference};
use super::dtype::{Float, Input};
use super::epilogue::Epilogue;
use super::linear::{Product, tiles, zeros};
use super::simd::Simd;
use super::simd::tiles::{BLOCK, Block, TILE};
use super::{Buffer, Reach};
use std::ptr::copy_nonoverlapping;

/// Words from key to key of the sums of two blocks of distances.
const WINDOW: usize = 2 * BLOCK + LINE;

/// The embeddings of distances of a layer.
pub struct Distances {
    /// As keys, which queries are multiplied with, and as queries, for keys: `[heads, columns / LANES, groups, LANES]`.
    words: [Buffer; 2],
    /// Distances from `-columns / 2` on; those beyond have the first or the last column.
    columns: usize,
    heads: Heads,
    groups: usize,
    lanes: usize,
}

/// Scratch memory of [`Distances`].
#[derive(Default)]
pub(super) struct Sums {
    /// Of a block of queries, `[32, columns]`.
    queries: Buffer,
    /// Of keys with the two blocks of distances that a block of queries has to them, `[keys, WINDOW]`.
    keys: Buffer,
    square: Buffer,
}

/// A head's scores of 32 queries.
#[derive(Clone, Copy)]
pub(super) struct BlockOfScores {
    pub head: usize,
    /// Which 32 queries of the sequence.
    pub block: usize,
    /// How many there are.
    pub rows: usize,
    /// The first of them, and words from row to row.
    pub queries: (*const u32, usize),
    /// All keys of the sequence.
    pub keys: (*const u32, usize),
    pub sequence: usize,
    /// For each query a row of scores, one for each key.
    pub scores: (*mut f32, usize),
}

impl Distances {
    /// Packs embeddings as keys and as queries, rows of `[heads.width()]` values, queries scaled as those of attention. For each
    /// distance of a key from its query, from `-places.len() / 2` on, `places` has the row. All distances beyond have the
    /// same row as the first 32, or as the last.
    pub fn pack<S: Simd, A: Float<S>>(rows: [&[f32]; 2], places: &[usize], heads: Heads) -> Self {
        assert!(places.len().is_multiple_of(2 * BLOCK) && !places.is_empty(), "distances are whole blocks");
        let (groups, columns) = (heads.size / A::GROUP, places.len());
        let pack = |rows: &[f32]| {
            let words = |row: &[f32]| A::encode_weights(row, 0.0, Input::Signed).words;
            let encoded: Vec<Vec<u32>> = rows.chunks_exact(heads.width()).map(words).collect();
            let mut packed = Buffer::in_huge_pages(heads.count * columns * groups);
            for (column, &place) in places.iter().enumerate() {
                for (head, words) in encoded[place].chunks_exact(groups).enumerate() {
                    let first = head * columns + column / S::LANES * S::LANES;
                    let to = &mut packed.words_mut()[first * groups + column % S::LANES..];
                    to.iter_mut().step_by(S::LANES).zip(words).for_each(|(to, &word)| *to = word);
                }
            }
            packed
        };
        Self { words: rows.map(pack), columns, heads, groups, lanes: S::LANES }
    }

    /// Whether it was packed for these heads.
    pub(super) fn fits<S: Simd, A: Float<S>>(&self, heads: Heads) -> bool {
        let is_same = (self.heads.count, self.heads.size) == (heads.count, heads.size);
        is_same && self.groups == heads.size / A::GROUP && self.lanes == S::LANES
    }

    /// A head's columns of 32 distances from `32 number` on.
    fn block(&self, table: usize, head: usize, number: isize) -> *const u32 {
        let blocks = (self.columns / BLOCK).cast_signed();
        let number = (number + blocks / 2).clamp(0, blocks - 1).cast_unsigned();
        self.words[table].words()[(head * self.columns + number * BLOCK) * self.groups..].as_ptr()
    }

    /// Adds to scores what the distances add.
    ///
    /// # Safety
    /// [`Distances::fits`] agreed. There are the queries, the keys and a place for each score, whole vectors of them. Where
    /// `A` is on tiles a session lives, and whole tiles of queries and keys can be read.
    #[inline(always)]
    pub(super) unsafe fn add<S: Simd, A: Float<S>>(&self, simd: S, sums: &mut Sums, at: BlockOfScores) {
        let BlockOfScores { head, block, rows, queries, keys, sequence, scores } = at;
        let (blocks, current) = (sequence.div_ceil(BLOCK), block.cast_signed());
        let stride = (blocks + 1) * BLOCK + LINE;
        sums.queries.grow(BLOCK * stride);
        sums.keys.grow(blocks * BLOCK * WINDOW);
        sums.square.grow(S::LANES * S::LANES);
        let of_queries = sums.queries.floats_mut().as_mut_ptr();
        let of_keys = sums.keys.floats_mut().as_mut_ptr();
        let square = sums.square.floats_mut().as_mut_ptr();
        let multiply = |rows: usize, from: (*const u32, usize), table: *const u32, to: (*mut f32, usize)| {
            // SAFETY: the caller promises the rows, and their sums have room below.
            unsafe { product::<S, A>(simd, (rows, from), (table, self.groups), to) };
        };
        // SAFETY: room for all sums has just been made: a query's row has a block more than there are keys.
        unsafe {
            for (place, number) in (0..=blocks).zip(-1 - current..) {
                let to = (of_queries.add(place * BLOCK), stride);
                multiply(rows, queries, self.block(0, head, number), to);
            }
            for (place, number) in (0..blocks).zip(-current..) {
                let first = place * BLOCK;
                let count = (sequence - first).min(BLOCK);
                let from = (keys.0.add(first * keys.1), keys.1);
                // Distances from 32 below the difference of the blocks' first places on.
                let window = of_keys.add(first * WINDOW);
                if block == 0 {
                    multiply(count, from, self.block(1, head, number), (window.add(BLOCK), WINDOW));
                } else {
                    for row in 0..count {
                        let lower = window.add(row * WINDOW);
                        copy_nonoverlapping(lower, lower.add(BLOCK), BLOCK);
                    }
                }
                multiply(count, from, self.block(1, head, number - 1), (window, WINDOW));
                for key in (0..count).step_by(S::LANES) {
                    for row in (0..rows).step_by(S::LANES) {
                        // A key's sums from the last of these queries on: distances grow as queries come earlier.
                        let last = row + S::LANES - 1;
                        let from = window.add(key * WINDOW + BLOCK + key - last);
                        simd.transpose(from.cast(), WINDOW + 1, (count - key).min(S::LANES), square.cast());
                        for own in row..rows.min(row + S::LANES) {
                            let score = scores.0.add(own * scores.1 + first + key);
                            let by_query = of_queries.add(own * stride + first + key + BLOCK - own);
                            let by_key = square.add((last - own) * S::LANES);
                            let by_distance = simd.add(simd.load(by_query), simd.load(by_key));
                            simd.store(score, simd.add(simd.load(score), by_distance));
                        }
                    }
                }
            }
        }
    }
}

/// Products of rows (how many, where they are, words from row to row) with 32 columns of `groups` words.
///
/// # Safety
/// The rows and the columns are there, and the sums have room; on tiles whole tiles of both, and a session lives.
#[inline(always)]
unsafe fn product<S: Simd, A: Float<S>>(
    simd: S,
    (rows, (a, a_stride)): (usize, (*const u32, usize)),
    (b, groups): (*const u32, usize),
    (to, stride): (*mut f32, usize),
) {
    if A::ON_TILES {
        let block = Block {
            rows,
            steps: groups / TILE,
            a,
            a_stride,
            b,
            b_stride: TILE,
            b_apart: groups * TILE,
            start: zeros(),
            start_stride: 0,
            sums: to.cast(),
            sums_stride: stride,
            fetch: a,
            fetch_lines: 0,
        };
        // SAFETY: the caller promises the same.
        return unsafe { A::multiply(&block) };
    }
    let (b_step, b_apart) = (S::LANES, groups * S::LANES);
    for column in (0..BLOCK).step_by(2 * S::LANES) {
        let product = Product {
            groups,
            a,
            a_stride,
            b: b.wrapping_add(column * groups),
            b_step,
            b_apart,
            start: zeros(),
            ahead: std::ptr::null(),
        };
        // SAFETY: the caller promises the rows, the columns and the room.
        unsafe { tiles::<S, A, _, 2>(simd, rows, (0, column), product, To { to, stride }) };
    }
}

/// Rows of sums.
#[derive(Clone, Copy)]
struct To {
    to: *mut f32,
    stride: usize,
}

impl<S: Simd> Epilogue<S> for To {
    fn fits(&self, _: usize, columns: usize) -> bool {
        columns <= self.stride
    }
    #[inline(always)]
    unsafe fn put(self, simd: S, row: usize, column: usize, values: S::V) {
        // SAFETY: the caller of `product` promised the room.
        unsafe { simd.store(self.to.add(row * self.stride + column), values) };
    }
}

/// [`attention_reference`](super::attention_reference) between all tokens, with embeddings of distances as keys and as queries,
/// `[rows, heads.width()]`; `place` gives the row of a distance.
pub fn attention_by_distance_reference(
    [query, key, value]: [&[f32]; 3],
    heads: Heads,
    rows: [&[f32]; 2],
    place: impl Fn(isize) -> usize,
) -> Vec<f32> {
    let dot = |head: usize, (a, a_row): (&[f32], usize), (b, b_row): (&[f32], usize)| -> f64 {
        let part = |values: &[f32], row: usize| -> Vec<f64> {
            let start = row * heads.width() + head * heads.size;
            values[start..start + heads.size].iter().map(|&value| value.into()).collect()
        };
        part(a, a_row).iter().zip(part(b, b_row)).map(|(a, b)| a * b).sum()
    };
    attend_reference([query, key, value], heads, Reach::All, |head, i, j| {
        let row = place(j.cast_signed() - i.cast_signed());
        dot(head, (query, i), (rows[0], row)) + dot(head, (key, j), (rows[1], row))
    })
}
