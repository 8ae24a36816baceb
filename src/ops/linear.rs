//! Y = X W^T + b, with what follows fused into it: the sums of a register tile go from the registers
//! through the bias, the activation or the residual to where they are needed.
//!
//! `W` lies in panels of two vectors' outputs, each panel word by word along the inputs; `X` lies row
//! by row, in the same dtype. A tile multiplies up to [`Simd::ROWS`] rows by one panel, broadcasting
//! the rows' words: Goto and van de Geijn's scheme (2008) for matrices that fit the second-level
//! cache. Each sum runs along the inputs in one order, whatever the tile's height, so that a row's
//! result does not depend on its neighbours.

use super::dtype::{Dtype, Input};
use super::epilogue::Epilogue;
use super::on_tiles::{Panels, on_tiles};
use super::operand::Rows;
use super::simd::tiles::TILE;
use super::simd::{Kernel, Simd};
use super::{Buffer, PAD};
use std::marker::PhantomData;
use std::sync::Arc;

/// Vectors of a panel's width.
const WIDE: usize = 2;
/// Initial accumulators of the widest tile.
static ZEROS: [u32; 32] = [0; 32];

/// A linear map before packing, padded to multiples of [`PAD`] with zeros.
pub struct Dense {
    /// Rows of `weight`.
    pub outputs: usize,
    /// Columns of `weight`.
    pub inputs: usize,
    /// `[outputs, inputs]`.
    pub weight: Vec<f32>,
    /// `[outputs]`.
    pub bias: Vec<f32>,
}

/// A linear map, packed for a processor in a dtype.
pub struct Linear<S, D> {
    /// `[outputs / width, groups, width]` from a word on, with `groups` words to an output's inputs; other maps may lie
    /// behind them.
    panels: (Arc<Buffer>, usize),
    groups: usize,
    inputs: usize,
    outputs: usize,
    /// Initial accumulators, `[outputs]`.
    start: Buffer,
    /// Scales and biases that finish the sums, `[outputs]` each.
    scale: Buffer,
    bias: Buffer,
    _marker: PhantomData<(S, D)>,
}

impl<S: Simd, D: Dtype<S>> Linear<S, D> {
    /// Packs a map whose input is of this kind.
    pub fn pack(dense: &Dense, input: Input) -> Self {
        let Dense { outputs, inputs, weight, bias } = dense;
        assert!(outputs.is_multiple_of(PAD) && inputs.is_multiple_of(PAD), "a map is padded");
        assert!(weight.len() == outputs * inputs && bias.len() == *outputs, "a map is whole");
        let (mut groups, width) = (inputs / D::GROUP, WIDE * S::LANES);
        if D::ON_TILES {
            // Whole steps of a tile; what a row has beyond its inputs meets zeros.
            groups = groups.next_multiple_of(TILE);
        }
        let mut panels = Buffer::zeros(outputs * groups);
        let mut packed = Self {
            panels: (Arc::default(), 0),
            groups,
            inputs: *inputs,
            outputs: *outputs,
            start: Buffer::zeros(*outputs),
            scale: Buffer::zeros(*outputs),
            bias: Buffer::zeros(*outputs),
            _marker: PhantomData,
        };
        for (output, (row, &bias)) in weight.chunks_exact(*inputs).zip(bias).enumerate() {
            let row = D::encode_weights(row, bias, input);
            let panel = &mut panels.words_mut()[output / width * groups * width..];
            for (group, word) in row.words.into_iter().enumerate() {
                panel[group * width + output % width] = word;
            }
            packed.start.words_mut()[output] = row.start;
            packed.scale.floats_mut()[output] = row.scale;
            packed.bias.floats_mut()[output] = row.bias;
        }
        packed.panels.0 = Arc::new(panels);
        packed
    }

    /// The panels and all words after them.
    fn words(&self) -> &[u32] {
        &self.panels.0.words()[self.panels.1..]
    }

    /// What [`on_tiles`] reads.
    fn tiled(&self) -> Panels<'_> {
        Panels {
            words: self.words(),
            start: self.start.words(),
            steps: self.groups / TILE,
            columns: self.outputs,
        }
    }

    /// Outputs, padding included.
    pub fn outputs(&self) -> usize {
        self.outputs
    }
}

/// Lays the weights of maps end to end, in huge pages where the system gives them: in the order in which they are
/// read, each panel is followed by the one that is needed next.
pub fn lay_together<S: Simd, D: Dtype<S>>(maps: &mut [&mut Linear<S, D>]) {
    let words = |map: &Linear<S, D>| map.outputs * map.groups;
    let mut all = Buffer::in_huge_pages(maps.iter().map(|map| words(map)).sum());
    let mut at = 0;
    for map in maps.iter() {
        all.words_mut()[at..at + words(map)].copy_from_slice(&map.words()[..words(map)]);
        at += words(map);
    }
    let (all, mut at) = (Arc::new(all), 0);
    for map in maps {
        map.panels = (all.clone(), at);
        at += words(map);
    }
}

/// Runs a linear map on every row of the input.
pub fn linear<S: Simd, D: Dtype<S>, E: Epilogue<S>>(
    simd: S,
    input: Rows<'_>,
    map: &Linear<S, D>,
    epilogue: E,
) {
    assert_eq!(input.groups, map.inputs / D::GROUP, "the input has what the map reads");
    assert!(epilogue.fits(input.count, map.outputs), "the result has a place");
    let width = WIDE * S::LANES;
    let finish = Finish::<D, E> {
        row_scales: input.scales.as_ptr(),
        scales: map.scale.floats().as_ptr(),
        biases: map.bias.floats().as_ptr(),
        epilogue,
        _marker: PhantomData,
    };
    if D::ON_TILES {
        return on_tiles::<S, D, _>(simd, (input.words, input.stride, input.count), map.tiled(), finish);
    }
    for panel in 0..map.outputs / width {
        let column = panel * width;
        let product = Product {
            groups: map.groups,
            a: input.words.as_ptr(),
            a_stride: input.stride,
            // `pack` made the panels and the starts.
            b: map.words()[column * map.groups..].as_ptr(),
            b_step: width,
            b_apart: S::LANES,
            start: map.start.words()[column..].as_ptr(),
            ahead: map.words()[(column + width) * map.groups..].as_ptr(),
        };
        // SAFETY: the input has its rows, the map its panels, and the epilogue said that the result fits.
        unsafe { tiles::<S, D, _, WIDE>(simd, input.count, (0, column), product, finish) };
    }
}

/// Converts sums to values and passes them to an epilogue.
struct Finish<D, E> {
    /// `[rows]`.
    row_scales: *const f32,
    /// `[outputs]` each.
    scales: *const f32,
    biases: *const f32,
    epilogue: E,
    _marker: PhantomData<D>,
}

impl<D, E: Copy> Clone for Finish<D, E> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<D, E: Copy> Copy for Finish<D, E> {}

impl<S: Simd, D: Dtype<S>, E: Epilogue<S>> Epilogue<S> for Finish<D, E> {
    fn fits(&self, rows: usize, columns: usize) -> bool {
        self.epilogue.fits(rows, columns)
    }
    #[inline(always)]
    unsafe fn put(self, simd: S, row: usize, column: usize, sums: S::V) {
        // SAFETY: `linear` asserted that there are these rows and columns.
        unsafe {
            let scale = simd.load(self.scales.add(column));
            let bias = simd.load(self.biases.add(column));
            let values = D::finish(simd, sums, *self.row_scales.add(row), scale, bias);
            self.epilogue.put(simd, row, column, values);
        }
    }
}

/// The operands of tiles: rows of `a`, `a_stride` words apart, by vectors of `b`, which lie `b_apart`
/// words apart, `b_step` words from one group to the next.
#[derive(Clone, Copy)]
pub(super) struct Product {
    pub groups: usize,
    pub a: *const u32,
    pub a_stride: usize,
    pub b: *const u32,
    pub b_step: usize,
    pub b_apart: usize,
    pub start: *const u32,
    /// What is read next, as large as `b`, which the first tiles fetch; null for nothing.
    pub ahead: *const u32,
}

/// Words of half a line of the cache: one prefetch for each group of a tile.
const AHEAD: usize = 8;

/// For accumulators that start from zero.
pub(super) fn zeros() -> *const u32 {
    ZEROS.as_ptr()
}

/// Multiplies `rows` rows by `N` vectors, in tiles of even height.
///
/// # Safety
/// `a` has these rows of `groups` words, `b` has `groups` times `N` vectors, `start` has `N` vectors,
/// and the epilogue has agreed to the rows and columns from `(row, column)` on.
#[inline(always)]
pub(super) unsafe fn tiles<S: Simd, D: Dtype<S>, E: Epilogue<S>, const N: usize>(
    simd: S,
    rows: usize,
    (row, column): (usize, usize),
    product: Product,
    epilogue: E,
) {
    let count = rows.div_ceil(S::ROWS);
    let mut done = 0;
    for tile in 0..count {
        let height = (rows - done).div_ceil(count - tile);
        let mut product = product;
        // SAFETY: the caller promises the rows.
        product.a = unsafe { product.a.add(done * product.a_stride) };
        // So many tiles fetch all of it.
        let fetches = !product.ahead.is_null() && tile < product.b_step / AHEAD;
        product.ahead = match fetches {
            true => product.ahead.wrapping_add(tile * product.groups * AHEAD),
            false => std::ptr::null(),
        };
        let place = (row + done, column);
        // Only heights that the processor has registers for are compiled.
        macro_rules! heights {
            ($($height:literal)*) => {
                match height {
                    $($height if const { $height <= S::ROWS } => simd.launch(Tile::<D, E, $height, N> {
                        product, place, epilogue, _marker: PhantomData,
                    }),)*
                    _ => unreachable!("no tile is higher than `ROWS`"),
                }
            };
        }
        heights!(1 2 3 4 5 6 7 8 9 10 11 12);
        done += height;
    }
}

struct Tile<D, E, const M: usize, const N: usize> {
    product: Product,
    place: (usize, usize),
    epilogue: E,
    _marker: PhantomData<D>,
}

impl<S: Simd, D: Dtype<S>, E: Epilogue<S>, const M: usize, const N: usize> Kernel<S> for Tile<D, E, M, N> {
    type Output = ();
    #[inline(always)]
    fn run(self, simd: S) {
        let Product { groups, mut a, a_stride, mut b, b_step, b_apart, start, ahead } = self.product;
        // Without a branch in the loop: what is read now is fetched again.
        let (mut ahead, ahead_step) = if ahead.is_null() { (b, 0) } else { (ahead, AHEAD) };
        // SAFETY: `tiles` passes on what its caller promises about every pointer here.
        unsafe {
            let mut sums = [[simd.splat(0.0); N]; M];
            for (n, sum) in sums[0].iter_mut().enumerate() {
                *sum = simd.load(start.cast::<f32>().add(n * S::LANES));
            }
            sums = [sums[0]; M];
            for _ in 0..groups {
                let mut vectors = [simd.splat_word(0); N];
                for (n, vector) in vectors.iter_mut().enumerate() {
                    *vector = simd.load_words(b.add(n * b_apart));
                }
                for (m, sums) in sums.iter_mut().enumerate() {
                    let word = simd.load_broadcast(a, m * a_stride);
                    for (sum, &vector) in sums.iter_mut().zip(&vectors) {
                        *sum = D::dot(simd, *sum, word, vector);
                    }
                }
                simd.prefetch(ahead);
                ahead = ahead.wrapping_add(ahead_step);
                a = a.add(1);
                b = b.add(b_step);
            }
            let (row, column) = self.place;
            // Unrolled by hand, so that sums stay in registers: as a loop this is too large for the
            // compiler to unroll, and it would put them into memory to index them.
            macro_rules! rows {
                ($($m:literal)*) => {$(
                    if let Some(sums) = sums.get($m) {
                        for (n, &sum) in sums.iter().enumerate() {
                            self.epilogue.put(simd, row + $m, column + n * S::LANES, sum);
                        }
                    }
                )*};
            }
            rows!(0 1 2 3 4 5 6 7 8 9 10 11);
        }
    }
}

/// Y = X W^T + b in f64: `x: [rows, inputs]` to `[rows, outputs]`.
pub fn linear_reference(x: &[f32], dense: &Dense) -> Vec<f32> {
    let product = |(&weight, &x): (&f32, &f32)| f64::from(weight) * f64::from(x);
    let row = |x: &[f32]| {
        let outputs = dense.weight.chunks_exact(dense.inputs).zip(&dense.bias);
        let value = |(weights, &bias): (&[f32], &f32)| {
            let dot: f64 = weights.iter().zip(x).map(product).sum();
            (dot + f64::from(bias)) as f32
        };
        outputs.map(value).collect::<Vec<f32>>()
    };
    x.chunks_exact(dense.inputs).flat_map(row).collect()
}
