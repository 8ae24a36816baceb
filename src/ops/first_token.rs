//! The last layer's attention, which is needed for the first token alone.
//!
//! Keys and values are absorbed into the query: with u_h = Wk_h^T q_h the scores are X u_h (what `bk`
//! adds is the same for every token, and a softmax does not see it), and the context is
//! Wv_h (p X) + bv_h, as the weights p sum to one. That is exact, and replaces 12 H^2 multiplications
//! a token by 2 H for each head.

use super::PAD;
use super::attention::{Heads, LINE, Scratch, softmax};
use super::dtype::F32;
use super::linear::Dense;
use super::simd::{Kernel, Simd};

/// What the last layer's attention reads for the first token, in f32; each map is `[heads.width(), hidden]`.
pub struct FirstToken {
    /// How states divide into heads.
    pub heads: Heads,
    /// To queries, scaled by log2(e) / sqrt(d).
    pub query: Dense,
    /// To keys; its bias has no effect.
    pub key: Dense,
    /// To values.
    pub value: Dense,
}

/// The first token's context, `[heads.width()]`, from all states of its sequence, `states: [tokens, hidden]`.
pub fn first_token_attention<S: Simd>(
    simd: S,
    layer: &FirstToken,
    states: &[f32],
    (scratch, context): (&mut Scratch, &mut [f32]),
) {
    let hidden = layer.query.inputs;
    let tokens = states.len() / hidden;
    assert!(hidden.is_multiple_of(PAD) && tokens > 0 && states.len() == tokens * hidden);
    let width = layer.heads.width();
    let is_whole =
        |map: &&Dense| map.inputs == hidden && map.weight.len() == width * hidden && map.bias.len() == width;
    assert!([&layer.query, &layer.key, &layer.value].iter().all(is_whole), "maps go from states to heads");
    assert_eq!(context.len(), width, "the context has a place");
    scratch.scores.grow(tokens + LINE);
    scratch.weights.grow(tokens.max(layer.heads.size) + LINE);
    scratch.states.grow(hidden);
    for head in 0..layer.heads.count {
        simd.launch(FirstHead { layer, states, tokens, head, scratch, context });
    }
}

struct FirstHead<'a> {
    layer: &'a FirstToken,
    states: &'a [f32],
    tokens: usize,
    head: usize,
    scratch: &'a mut Scratch,
    context: &'a mut [f32],
}

impl<S: Simd> Kernel<S> for FirstHead<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self, simd: S) {
        let Self { layer, states, tokens, head, scratch, context } = self;
        let (hidden, size) = (layer.query.inputs, layer.heads.size);
        let rows = head * size..(head + 1) * size;
        let row = |map: &Dense, row: usize| map.weight[row * hidden..].as_ptr();
        // SAFETY: `first_token_attention` asserted the shapes and made room in the scratch.
        unsafe {
            let query = scratch.weights.floats_mut();
            for (query, index) in query.iter_mut().zip(rows.clone()) {
                let sum = dot(simd, row(&layer.query, index), states.as_ptr(), hidden);
                *query = sum + layer.query.bias[index];
            }
            let absorbed = scratch.states.floats_mut().as_mut_ptr();
            weighted_sum(simd, query.as_ptr(), (row(&layer.key, rows.start), size), absorbed, hidden);
            let scores = scratch.scores.floats_mut();
            for (token, score) in scores.iter_mut().enumerate().take(tokens) {
                *score = dot(simd, absorbed, states.as_ptr().add(token * hidden), hidden);
            }
            let weights = scratch.weights.words_mut().as_mut_ptr();
            let inverse = 1.0 / softmax::<S, F32>(simd, scores.as_ptr(), tokens, weights);
            weighted_sum(simd, weights.cast(), (states.as_ptr(), tokens), absorbed, hidden);
            for index in rows {
                let sum = dot(simd, row(&layer.value, index), absorbed, hidden);
                context[index] = sum * inverse + layer.value.bias[index];
            }
        }
    }
}

/// # Safety
/// `count` floats lie behind `a` and `b`; `count` is a multiple of [`PAD`].
#[inline(always)]
unsafe fn dot<S: Simd>(simd: S, a: *const f32, b: *const f32, count: usize) -> f32 {
    let mut sums = [simd.splat(0.0); 2];
    for at in (0..count).step_by(2 * S::LANES) {
        for (n, sum) in sums.iter_mut().enumerate() {
            let place = at + n * S::LANES;
            // SAFETY: the caller promises the floats, and PAD is a multiple of two vectors.
            *sum = unsafe { simd.fma(simd.load(a.add(place)), simd.load(b.add(place)), *sum) };
        }
    }
    simd.sum(simd.add(sums[0], sums[1]))
}

/// `to = sum of weights[t] rows[t]`, for as many columns at a time as registers hold.
///
/// # Safety
/// `rows` weights and rows of `count` floats are there, and `count` floats behind `to`; `count` is a
/// multiple of [`PAD`].
#[inline(always)]
unsafe fn weighted_sum<S: Simd>(
    simd: S,
    weights: *const f32,
    (from, rows): (*const f32, usize),
    to: *mut f32,
    count: usize,
) {
    const WIDE: usize = 8;
    let mut at = 0;
    // SAFETY: the caller promises the floats.
    unsafe {
        while at < count {
            let wide = if count - at >= WIDE * S::LANES { WIDE } else { 2 };
            let mut sums = [simd.splat(0.0); WIDE];
            for row in 0..rows {
                let (weight, row) = (simd.splat(*weights.add(row)), from.add(row * count + at));
                if wide == WIDE {
                    for (n, sum) in sums.iter_mut().enumerate() {
                        *sum = simd.fma(weight, simd.load(row.add(n * S::LANES)), *sum);
                    }
                } else {
                    for (n, sum) in sums.iter_mut().enumerate().take(2) {
                        *sum = simd.fma(weight, simd.load(row.add(n * S::LANES)), *sum);
                    }
                }
            }
            for (n, &sum) in sums.iter().enumerate().take(wide) {
                simd.store(to.add(at + n * S::LANES), sum);
            }
            at += wide * S::LANES;
        }
    }
}
