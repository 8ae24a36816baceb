//! From a sequence's pooled state to its logit, in f32: w norm(act(W x + b)) + c, where the dense map and the norm may be
//! missing.

use super::dtype::{F32, Float, Input};
use super::epilogue::Keep;
use super::layer_norm::{Norm, layer_norm};
use super::linear::{Dense, Linear, linear};
use super::math::tanh;
use super::operand::Operand;
use super::simd::{Kernel, Simd};
use super::{Activation, Buffer, Gelu, PAD};

/// A classification head with one output.
pub struct Head<S> {
    dense: Option<(Linear<S, F32>, Activation)>,
    norm: Option<Norm>,
    /// `[hidden]`, padded with zeros.
    weight: Buffer,
    hidden: usize,
    bias: f32,
}

/// Scratch memory of [`Head::logits`].
#[derive(Default)]
pub struct HeadScratch {
    input: Operand,
    rows: Buffer,
}

impl<S: Simd> Head<S> {
    /// `dense: [hidden, hidden]` with its activation, then the norm, then `weight: [hidden]` and `bias`.
    pub fn new(dense: Option<(&Dense, Activation)>, norm: Option<Norm>, weight: &[f32], bias: f32) -> Self {
        let hidden = weight.len().next_multiple_of(PAD);
        let is_square = |(dense, _): &(&Dense, Activation)| (dense.outputs, dense.inputs) == (hidden, hidden);
        assert!(dense.as_ref().is_none_or(is_square), "a head keeps its width");
        let mut padded = Buffer::zeros(hidden);
        padded.floats_mut()[..weight.len()].copy_from_slice(weight);
        let dense = dense.map(|(dense, activation)| (Linear::pack(dense, Input::Signed), activation));
        Self { dense, norm, weight: padded, hidden, bias }
    }

    /// A logit for each row of `states: [rows, hidden]`.
    pub fn logits(&self, simd: S, states: &[f32], scratch: &mut HeadScratch, logits: &mut [f32]) {
        let hidden = self.hidden;
        assert!(states.len() == logits.len() * hidden, "a row for each logit");
        let HeadScratch { input, rows } = scratch;
        rows.grow(states.len());
        match &self.dense {
            Some((dense, activation)) => {
                input.fill::<S, F32>(simd, states, hidden);
                linear(simd, input.all(), dense, Keep::<F32>::new(rows.words_mut(), hidden));
                let values = &mut rows.floats_mut()[..states.len()];
                simd.launch(Activate { values, activation: *activation });
            }
            None => rows.floats_mut()[..states.len()].copy_from_slice(states),
        }
        let rows = &mut rows.floats_mut()[..states.len()];
        if let Some(norm) = &self.norm {
            layer_norm(simd, norm, rows);
        }
        for (row, logit) in rows.chunks_exact(hidden).zip(logits) {
            *logit = simd.launch(Dot { row, weight: &self.weight.floats()[..hidden] }) + self.bias;
        }
    }
}

struct Activate<'a> {
    values: &'a mut [f32],
    activation: Activation,
}

impl<S: Simd> Kernel<S> for Activate<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self, simd: S) {
        macro_rules! by {
            (|$x:ident| $value:expr) => {
                for values in self.values.chunks_exact_mut(S::LANES) {
                    // SAFETY: there are `LANES` values.
                    unsafe {
                        let $x = simd.load(values.as_ptr());
                        simd.store(values.as_mut_ptr(), $value);
                    }
                }
            };
        }
        match self.activation {
            Activation::Gelu(Gelu::Erf) => by!(|x| <F32 as Float<S>>::gelu::<false>(simd, x)),
            Activation::Gelu(Gelu::Tanh) => by!(|x| <F32 as Float<S>>::gelu::<true>(simd, x)),
            Activation::Silu => by!(|x| <F32 as Float<S>>::silu(simd, x)),
            Activation::Tanh => by!(|x| tanh(simd, x)),
        }
    }
}

struct Dot<'a> {
    row: &'a [f32],
    weight: &'a [f32],
}

impl<S: Simd> Kernel<S> for Dot<'_> {
    type Output = f32;
    #[inline(always)]
    fn run(self, simd: S) -> f32 {
        let mut sum = simd.splat(0.0);
        for at in (0..self.row.len()).step_by(S::LANES) {
            // SAFETY: both have the same length, a multiple of `LANES`.
            let (value, weight) =
                unsafe { (simd.load(self.row.as_ptr().add(at)), simd.load(self.weight.as_ptr().add(at))) };
            sum = simd.fma(value, weight, sum);
        }
        simd.sum(sum)
    }
}
