//! From the first token's state to the logit, in f32: w tanh(W x + b) + c.

use super::dtype::{F32, Input};
use super::epilogue::Keep;
use super::linear::{Dense, Linear, linear};
use super::math::tanh;
use super::operand::Operand;
use super::simd::{Kernel, Simd};
use super::{Buffer, PAD};

/// A classification head with one output.
pub struct Head<S> {
    pooler: Linear<S, F32>,
    /// `[hidden]`, padded with zeros.
    weight: Buffer,
    bias: f32,
}

/// Memory that a head works in.
#[derive(Default)]
pub struct HeadScratch {
    input: Operand,
    pooled: Buffer,
}

impl<S: Simd> Head<S> {
    /// `pooler: [hidden, hidden]` before the tanh, `weight: [hidden]` and `bias` after it.
    pub fn new(pooler: &Dense, weight: &[f32], bias: f32) -> Self {
        let mut padded = Buffer::zeros(pooler.outputs);
        padded.floats_mut()[..weight.len()].copy_from_slice(weight);
        Self { pooler: Linear::pack(pooler, Input::Signed), weight: padded, bias }
    }

    /// A logit for each row of `states: [rows, hidden]`.
    pub fn logits(&self, simd: S, states: &[f32], scratch: &mut HeadScratch, logits: &mut [f32]) {
        let hidden = self.pooler.outputs();
        assert!(hidden.is_multiple_of(PAD) && states.len() == logits.len() * hidden, "a row for each logit");
        scratch.input.fill::<S, F32>(simd, states, hidden);
        scratch.pooled.grow(states.len());
        let pooled = scratch.pooled.words_mut();
        linear(simd, scratch.input.all(), &self.pooler, Keep::<F32>::new(pooled, hidden));
        let rows = scratch.pooled.floats().chunks_exact(hidden);
        for (row, logit) in rows.zip(logits) {
            *logit = simd.launch(TanhDot { row, weight: &self.weight.floats()[..hidden] }) + self.bias;
        }
    }
}

struct TanhDot<'a> {
    row: &'a [f32],
    weight: &'a [f32],
}

impl<S: Simd> Kernel<S> for TanhDot<'_> {
    type Output = f32;
    #[inline(always)]
    fn run(self, simd: S) -> f32 {
        let mut sum = simd.splat(0.0);
        for at in (0..self.row.len()).step_by(S::LANES) {
            // SAFETY: both have the same length, a multiple of `LANES`.
            let (value, weight) =
                unsafe { (simd.load(self.row.as_ptr().add(at)), simd.load(self.weight.as_ptr().add(at))) };
            sum = simd.fma(tanh(simd, value), weight, sum);
        }
        simd.sum(sum)
    }
}
