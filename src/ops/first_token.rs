//! The last layer's attention, computed for the first token of each sequence only.
//!
//! Keys and values are absorbed into the query: with u_h = Wk_h^T q_h the scores are X u_h (what `bk`
//! adds is the same for every token, and a softmax does not see it), and the context is
//! Wv_h (p X) + bv_h, as the weights p sum to one. That is exact, and replaces 12 H^2 multiplications
//! a token by 2 H for each head. Maps are read once for many sequences, and states twice for all heads.

use super::attention::{Heads, LINE};
use super::dtype::{F32, Input};
use super::epilogue::{Epilogue, Keep};
use super::linear::{Dense, Linear, Product, linear, tiles, zeros};
use super::math::{EXP2_RISING, exp2};
use super::operand::{Operand, Rows};
use super::simd::{Kernel, Simd};
use super::{Buffer, PAD};

/// Sequences that are computed together. Bounds the memory.
const TOGETHER: usize = 16;

/// What the last layer's attention reads for first tokens, in f32.
pub struct FirstToken<S> {
    heads: Heads,
    hidden: usize,
    /// From states to queries, scaled by log2(e) / sqrt(d).
    query: Linear<S, F32>,
    /// For each head: the map from its query to the vector whose products with the states are the scores, and the map from the
    /// weighted states to its context.
    absorbed: Vec<Linear<S, F32>>,
    value: Vec<Linear<S, F32>>,
}

/// Scratch memory of [`first_token_attention`].
#[derive(Default)]
pub struct FirstScratch {
    firsts: Buffer,
    input: Operand,
    queries: Operand,
    /// `[sequences, heads, hidden]` each: queries through the keys' maps, and states mixed by the weights.
    absorbed: Buffer,
    mixed: Buffer,
    /// `[sequences, heads.width()]`.
    contexts: Buffer,
    one: OneScratch,
}

/// Scratch memory for one sequence.
#[derive(Default)]
struct OneScratch {
    /// The absorbed queries, transposed: `[heads / LANES, hidden, LANES]`.
    columns: Buffer,
    /// `[tokens, heads, to a whole vector]`.
    scores: Buffer,
    /// `[heads, to a whole vector, tokens, to a whole vector]`.
    weights: Buffer,
    /// `[heads, to a whole vector]`.
    inverse: Buffer,
    square: Buffer,
}

impl<S: Simd> FirstToken<S> {
    /// Packs the maps, each from states to `heads.width()`; queries are scaled by log2(e) / sqrt(d).
    pub fn new(heads: Heads, [query, key, value]: &[Dense; 3]) -> Self {
        let (hidden, size) = (query.inputs, heads.size);
        let is_whole = |map: &&Dense| {
            map.outputs == heads.width()
                && map.inputs == hidden
                && map.weight.len() == map.outputs * hidden
                && map.bias.len() == map.outputs
        };
        assert!([query, key, value].iter().all(is_whole), "maps go from states to heads");
        let transposed = |head: usize| Dense {
            outputs: hidden,
            inputs: size,
            weight: (0..hidden)
                .flat_map(|output| (0..size).map(move |input| (head * size + input) * hidden + output))
                .map(|place| key.weight[place])
                .collect(),
            bias: vec![0.0; hidden],
        };
        let part = |head: usize| Dense {
            outputs: size,
            inputs: hidden,
            weight: value.weight[head * size * hidden..(head + 1) * size * hidden].to_vec(),
            bias: value.bias[head * size..(head + 1) * size].to_vec(),
        };
        let pack = |map: Dense| Linear::pack(&map, Input::Signed);
        Self {
            heads,
            hidden,
            query: Linear::pack(query, Input::Signed),
            absorbed: (0..heads.count).map(|head| pack(transposed(head))).collect(),
            value: (0..heads.count).map(|head| pack(part(head))).collect(),
        }
    }
}

/// Appends the first tokens' contexts, `[sequences, heads.width()]`, from all states, `[tokens, hidden]`; sequence
/// `i` is rows `starts[i]..starts[i + 1]`.
pub fn first_token_attention<S: Simd>(
    simd: S,
    layer: &FirstToken<S>,
    (states, starts): (&[f32], &[usize]),
    scratch: &mut FirstScratch,
    contexts: &mut Vec<f32>,
) {
    let rows = states.len() / layer.hidden;
    assert!(starts.windows(2).all(|pair| pair[0] < pair[1] && pair[1] <= rows), "sequences have their rows");
    let mut first = 0;
    while first + 1 < starts.len() {
        let last = (first + TOGETHER).min(starts.len() - 1);
        together(simd, layer, (states, &starts[first..=last]), scratch, contexts);
        first = last;
    }
}

fn together<S: Simd>(
    simd: S,
    layer: &FirstToken<S>,
    (states, starts): (&[f32], &[usize]),
    scratch: &mut FirstScratch,
    contexts: &mut Vec<f32>,
) {
    let (hidden, count, size, width) =
        (layer.hidden, layer.heads.count, layer.heads.size, layer.heads.width());
    let sequences = starts.len() - 1;
    let FirstScratch { firsts, input, queries, absorbed, mixed, contexts: found, one } = scratch;
    firsts.grow(sequences * hidden);
    for (to, &start) in firsts.floats_mut().chunks_exact_mut(hidden).zip(&starts[..sequences]) {
        to.copy_from_slice(&states[start * hidden..][..hidden]);
    }
    input.fill::<S, F32>(simd, &firsts.floats()[..sequences * hidden], hidden);
    queries.shape::<S, F32>(sequences, width);
    let stride = queries.stride();
    linear(simd, input.all(), &layer.query, Keep::<F32>::new(queries.words.words_mut(), stride));
    // One row more, because a head's rows begin inside the first one.
    let wide = count * hidden;
    absorbed.grow((sequences + 1) * wide);
    mixed.grow((sequences + 1) * wide);
    found.grow((sequences + 1) * width);
    for (head, map) in layer.absorbed.iter().enumerate() {
        let to = Keep::<F32>::new(&mut absorbed.words_mut()[head * hidden..], wide);
        linear(simd, queries.all().part(head * size, size), map, to);
    }
    for (sequence, bounds) in starts.windows(2).enumerate() {
        let place = sequence * wide..(sequence + 1) * wide;
        simd.launch(Mix {
            states: &states[bounds[0] * hidden..bounds[1] * hidden],
            hidden,
            absorbed: &absorbed.words()[place.clone()],
            mixed: &mut mixed.floats_mut()[place],
            scratch: one,
        });
    }
    let mixed = Rows {
        words: mixed.words(),
        stride: wide,
        groups: wide,
        scales: input.all().scales,
        count: sequences,
    };
    for (head, map) in layer.value.iter().enumerate() {
        let to = Keep::<F32>::new(&mut found.words_mut()[head * size..], width);
        linear(simd, mixed.part(head * hidden, hidden), map, to);
    }
    contexts.extend_from_slice(&found.floats()[..sequences * width]);
}

/// softmax(X u_h) X for every head of one sequence.
struct Mix<'a> {
    /// `[tokens, hidden]`.
    states: &'a [f32],
    hidden: usize,
    /// `[heads, hidden]`.
    absorbed: &'a [u32],
    /// `[heads, hidden]`, written.
    mixed: &'a mut [f32],
    scratch: &'a mut OneScratch,
}

impl<S: Simd> Kernel<S> for Mix<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self, simd: S) {
        let Self { states, hidden, absorbed, mixed, scratch } = self;
        let OneScratch { columns, scores, weights, inverse, square } = scratch;
        let (tokens, heads) = (states.len() / hidden, absorbed.len() / hidden);
        let (wide, long) = (heads.next_multiple_of(S::LANES), tokens.next_multiple_of(S::LANES));
        let weight_stride = long + LINE;
        assert!(hidden.is_multiple_of(PAD) && mixed.len() == heads * hidden, "widths are padded");
        columns.grow(wide * hidden);
        scores.grow(long * wide);
        weights.grow(wide * weight_stride);
        inverse.grow(wide);
        square.grow(S::LANES * S::LANES);
        // SAFETY: what is read and written has just been made room for, or is there by the assertions.
        unsafe {
            for head in (0..wide).step_by(S::LANES) {
                for at in (0..hidden).step_by(S::LANES) {
                    let from = absorbed.as_ptr().add(head * hidden + at);
                    let to = columns.words_mut().as_mut_ptr().add(head * hidden + at * S::LANES);
                    simd.transpose(from, hidden, (heads - head).min(S::LANES), to);
                }
                let product = Product {
                    groups: hidden,
                    a: states.as_ptr().cast(),
                    a_stride: hidden,
                    b: columns.words().as_ptr().add(head * hidden),
                    b_step: S::LANES,
                    b_apart: S::LANES,
                    start: zeros(),
                    ahead: std::ptr::null(),
                };
                let to = Place { to: scores.floats_mut().as_mut_ptr(), stride: wide };
                tiles::<S, F32, _, 1>(simd, tokens, (0, head), product, to);
                let scores = scores.floats_mut().as_mut_ptr().add(head);
                let sums = softmax_down(simd, scores, wide, tokens);
                simd.store(inverse.floats_mut().as_mut_ptr().add(head), simd.div(simd.splat(1.0), sums));
                for token in (0..tokens).step_by(S::LANES) {
                    let square = square.words_mut().as_mut_ptr();
                    let from = scores.cast_const().cast::<u32>().add(token * wide);
                    simd.transpose(from, wide, (tokens - token).min(S::LANES), square);
                    for row in 0..S::LANES {
                        let to = weights.floats_mut().as_mut_ptr().add((head + row) * weight_stride + token);
                        simd.store(to, simd.load(square.add(row * S::LANES).cast()));
                    }
                }
            }
            for column in (0..hidden).step_by(2 * S::LANES) {
                let product = Product {
                    groups: tokens,
                    a: weights.words().as_ptr(),
                    a_stride: weight_stride,
                    b: states.as_ptr().cast::<u32>().add(column),
                    b_step: hidden,
                    b_apart: S::LANES,
                    start: zeros(),
                    ahead: std::ptr::null(),
                };
                let to = Scaled {
                    to: Place { to: mixed.as_mut_ptr(), stride: hidden },
                    inverse: inverse.floats().as_ptr(),
                };
                tiles::<S, F32, _, 2>(simd, heads, (0, column), product, to);
            }
        }
    }
}

/// Turns columns of scores, `rows` of them `stride` apart, into 2^(score - largest); their sums.
///
/// # Safety
/// A vector lies at each row.
#[inline(always)]
unsafe fn softmax_down<S: Simd>(simd: S, scores: *mut f32, stride: usize, rows: usize) -> S::V {
    let mut largest = simd.splat(f32::MIN);
    let mut sum = simd.splat(0.0);
    // SAFETY: the caller promises the rows.
    unsafe {
        for row in 0..rows {
            largest = simd.max(largest, simd.load(scores.add(row * stride)));
        }
        for row in 0..rows {
            let place = scores.add(row * stride);
            let power = exp2(simd, simd.sub(simd.load(place), largest), &EXP2_RISING);
            sum = simd.add(sum, power);
            simd.store(place, power);
        }
    }
    sum
}

/// Destination rows of f32.
#[derive(Clone, Copy)]
struct Place {
    to: *mut f32,
    stride: usize,
}

impl<S: Simd> Epilogue<S> for Place {
    fn fits(&self, _: usize, columns: usize) -> bool {
        columns <= self.stride
    }
    #[inline(always)]
    unsafe fn put(self, simd: S, row: usize, column: usize, values: S::V) {
        // SAFETY: `Mix` made room for all rows and columns.
        unsafe { simd.store(self.to.add(row * self.stride + column), values) };
    }
}

/// The same, each row multiplied by a factor of its own.
#[derive(Clone, Copy)]
struct Scaled {
    to: Place,
    inverse: *const f32,
}

impl<S: Simd> Epilogue<S> for Scaled {
    fn fits(&self, rows: usize, columns: usize) -> bool {
        Epilogue::<S>::fits(&self.to, rows, columns)
    }
    #[inline(always)]
    unsafe fn put(self, simd: S, row: usize, column: usize, values: S::V) {
        // SAFETY: `Mix` has a factor for each row, and room for all rows and columns.
        unsafe {
            let factor = simd.splat(*self.inverse.add(row));
            self.to.put(simd, row, column, simd.mul(values, factor));
        }
    }
}
