//! Linear maps on tiles: what [`linear`](super::linear) does where a dtype has them.
//!
//! Panels are 32 columns wide, and lie as on other processors: row by row of words, which is the order that tiles
//! read. A panel is multiplied by all rows, 32 at a time, and stays in the first-level cache meanwhile; the next one is
//! fetched beside it. A block's sums go through the epilogue while they are in the first-level cache.

use super::dtype::Dtype;
use super::epilogue::Epilogue;
use super::simd::tiles::{BLOCK, Block, TILE, Tiles};
use super::simd::{Kernel, Simd};
use std::marker::PhantomData;

/// Steps after which sums are stored and the next rows begin. This part of a panel and of a block's rows, 2 KB a step each,
/// shares a first-level cache of 48 KB with the sums (4 KB a block): with 8 steps the maps of a layer are 1.13 times as fast
/// as with 12 in bf16, and 1.08 times in int8.
const STEPS_MAX: usize = 8;
/// Rows whose sums are stored at once.
const ROWS_MAX: usize = 256;
/// Words in a cache line.
const LINE: usize = 16;

/// A map's weights: `[columns / 32, 16 steps, 32]` words, and what each column's sums start from.
#[derive(Clone, Copy)]
pub(super) struct Panels<'a> {
    pub words: &'a [u32],
    pub start: &'a [u32],
    pub steps: usize,
    pub columns: usize,
}

/// Multiplies rows (their words, the words from row to row, and how many there are) by all columns.
pub(super) fn on_tiles<S: Simd, D: Dtype<S>, E: Epilogue<S>>(
    simd: S,
    (words, stride, rows): (&[u32], usize, usize),
    panels: Panels<'_>,
    epilogue: E,
) {
    assert!(S::LANES == TILE && panels.columns.is_multiple_of(BLOCK) && panels.steps > 0);
    assert!(rows.next_multiple_of(BLOCK) * stride <= words.len(), "tiles read whole rows of their own");
    assert!(panels.steps * TILE <= stride, "a row has what the panels read");
    assert!(
        panels.words.len() >= panels.columns * panels.steps * TILE && panels.start.len() >= panels.columns
    );
    let session = S::Tiles::session();
    let mut row = 0;
    while row < rows {
        let count = (rows - row).min(ROWS_MAX);
        let a = words[row * stride..].as_ptr();
        simd.launch(Rows::<D, E> { a, stride, first: row, count, panels, epilogue, _marker: PhantomData });
        row += count;
    }
    drop(session);
}

/// Multiplies so often 24 steps of a block that lies in the first-level cache, and says how many multiplications that
/// were: the processor's rate, for benches. None where the dtype has no tiles.
pub fn multiply_on_tiles<S: Simd, D: Dtype<S>>(times: usize) -> Option<usize> {
    const STEPS: usize = 24;
    if !D::ON_TILES {
        return None;
    }
    let session = S::Tiles::session();
    let (operands, mut sums) = (Sums([0x3f80_3f80; BLOCK * BLOCK]), Sums([0; BLOCK * BLOCK]));
    let words = operands.0.as_ptr();
    // All rows are one, and steps go on along it; columns are the same in all steps.
    let block = Block {
        rows: BLOCK,
        steps: STEPS,
        a: words,
        a_stride: 0,
        b: words,
        b_stride: 0,
        b_apart: TILE,
        start: words,
        start_stride: 0,
        sums: sums.0.as_mut_ptr(),
        sums_stride: BLOCK,
        fetch: words,
        fetch_lines: 0,
    };
    for _ in 0..times {
        // SAFETY: a row of 24 steps and one of 32 columns lie in `operands`, a block's sums in `sums`; the session lives.
        unsafe { D::multiply(&block) };
    }
    drop(session);
    Some(times * STEPS * TILE * D::GROUP * BLOCK * BLOCK)
}

/// Sums of a block, at a cache line's start.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Sums([u32; BLOCK * BLOCK]);

struct Rows<'a, D, E> {
    a: *const u32,
    stride: usize,
    first: usize,
    count: usize,
    panels: Panels<'a>,
    epilogue: E,
    _marker: PhantomData<D>,
}

impl<S: Simd, D: Dtype<S>, E: Epilogue<S>> Kernel<S> for Rows<'_, D, E> {
    type Output = ();
    #[inline(always)]
    fn run(self, simd: S) {
        let Self { a, stride, first, count, panels, epilogue, .. } = self;
        let mut aside = [Sums([0; BLOCK * BLOCK]); ROWS_MAX / BLOCK];
        let blocks = count.div_ceil(BLOCK);
        let panel_words = panels.steps * TILE * BLOCK;
        let parts = panels.steps.div_ceil(STEPS_MAX);
        // Each block fetches its share of the next panel's lines, two for each of a step's 16 rows.
        let fetch_lines = (2 * TILE).div_ceil(blocks);
        for column in (0..panels.columns).step_by(BLOCK) {
            let panel = panels.words[column / BLOCK * panel_words..].as_ptr();
            let mut done = 0;
            for part in 0..parts {
                let steps = (panels.steps - done).div_ceil(parts - part);
                for number in 0..blocks {
                    let row = number * BLOCK;
                    // Without stored sums two buffers are enough.
                    let place = if parts == 1 { number % 2 } else { number };
                    let sums = aside[place].0.as_mut_ptr();
                    let is_first = part == 0;
                    let block = Block {
                        rows: (count - row).min(BLOCK),
                        steps,
                        a: a.wrapping_add(row * stride + done * TILE),
                        a_stride: stride,
                        b: panel.wrapping_add(done * TILE * BLOCK),
                        b_stride: BLOCK,
                        b_apart: TILE,
                        start: if is_first { panels.start[column..].as_ptr() } else { sums },
                        start_stride: if is_first { 0 } else { BLOCK },
                        sums,
                        sums_stride: BLOCK,
                        fetch: panel.wrapping_add(
                            panel_words + (number * steps + done * blocks) * fetch_lines * LINE,
                        ),
                        fetch_lines,
                    };
                    // SAFETY: `on_tiles` asserted that the rows, whole tiles of them, and the panels are there, and
                    // keeps the session; epilogues agreed to the rows and columns before.
                    unsafe {
                        D::multiply(&block);
                        if part + 1 == parts {
                            for r in 0..block.rows {
                                let sums = sums.add(r * BLOCK).cast::<f32>();
                                for at in [0, TILE] {
                                    let values = simd.load(sums.add(at));
                                    epilogue.put(simd, first + row + r, column + at, values);
                                }
                            }
                        }
                    }
                }
                done += steps;
            }
        }
    }
}
