//! act(a) * b as the next map's input, where a feed-forward part is gated (Shazeer 2020). The two halves come out of one
//! map, in the dtype that attention works in.

use super::dtype::{Dtype, F32, Float};
use super::math::tanh;
use super::operand::{Operand, RowsMut};
use super::simd::{Kernel, Simd};
use super::{Activation, Buffer, Gelu, PAD};
use std::marker::PhantomData;

/// Writes act(rows[.., ..width]) * rows[.., width..] as an operand. `rows: [count, 2 width]` in `A`, each of `stride` words.
pub fn gate<S: Simd, D: Dtype<S>, A: Float<S>>(
    simd: S,
    (rows, stride): (&[u32], usize),
    (count, width): (usize, usize),
    activation: Activation,
    (scratch, output): (&mut Buffer, &mut Operand),
) {
    assert!(width.is_multiple_of(PAD) && 2 * width / A::GROUP <= stride, "a row has two halves");
    assert!(rows.len() >= count * stride, "rows are whole");
    output.shape::<S, D>(count, width);
    let place = output.range_mut::<S, D>(0..count, width);
    scratch.grow(width);
    let row = &mut scratch.floats_mut()[..width];
    simd.launch(Gate::<D, A> { rows, stride, activation, row, place, _marker: PhantomData });
}

struct Gate<'a, D, A> {
    rows: &'a [u32],
    stride: usize,
    activation: Activation,
    /// A row to work in.
    row: &'a mut [f32],
    place: RowsMut<'a>,
    _marker: PhantomData<(D, A)>,
}

impl<S: Simd, D: Dtype<S>, A: Float<S>> Kernel<S> for Gate<'_, D, A> {
    type Output = ();
    #[inline(always)]
    fn run(self, simd: S) {
        let Self { rows, stride, activation, row, place, .. } = self;
        let width = row.len();
        let places = place.words.chunks_exact_mut(place.stride).zip(place.scales);
        for (from, (to, scale)) in rows.chunks_exact(stride).zip(places) {
            // The branch is outside of the loop over a row.
            macro_rules! by {
                (|$x:ident| $value:expr) => {
                    for at in (0..width).step_by(S::LANES) {
                        // SAFETY: `gate` asserted that a row has two halves of `width` values, a multiple of `LANES`.
                        unsafe {
                            let ($x, other) =
                                (A::load(simd, from.as_ptr(), at), A::load(simd, from.as_ptr(), width + at));
                            simd.store(row.as_mut_ptr().add(at), simd.mul($value, other));
                        }
                    }
                };
            }
            match activation {
                Activation::Gelu(Gelu::Erf) => by!(|x| A::gelu::<false>(simd, x)),
                Activation::Gelu(Gelu::Tanh) => by!(|x| A::gelu::<true>(simd, x)),
                Activation::Silu => by!(|x| A::silu(simd, x)),
                Activation::Tanh => by!(|x| tanh(simd, x)),
            }
            // SAFETY: the row has `width` values, and `range_mut` found room for them in words.
            *scale = unsafe { D::encode::<F32>(simd, row.as_ptr().cast(), width, to.as_mut_ptr()) };
        }
    }
}
