//! gelu(X W^T + b) as the next map's input. Floats are written at once; bytes wait in floats until a
//! row's largest value, and with it the scale, is known.

use super::Gelu;
use super::dtype::{Float, GELU_SHIFT, Int8};
use super::epilogue::{Epilogue, Keep};
use super::linear::{Linear, linear};
use super::operand::{Operand, Rows};
use super::simd::{Kernel, Simd};
use std::marker::PhantomData;

/// Stores gelu(values) in a dtype, and the largest value of each lane where a row's scale is computed later.
#[derive(Clone, Copy)]
struct Activate<'a, A: Copy, const TANH: bool, const LARGEST: bool> {
    keep: Keep<'a, A>,
    /// `[rows, LANES]`, if `LARGEST`.
    largest: *mut f32,
    largest_count: usize,
}

impl<'a, A: Copy, const TANH: bool, const LARGEST: bool> Activate<'a, A, TANH, LARGEST> {
    fn new(keep: Keep<'a, A>, largest: &'a mut [f32]) -> Self {
        Self { keep, largest: largest.as_mut_ptr(), largest_count: largest.len() }
    }
}

impl<S: Simd, A: Float<S>, const TANH: bool, const LARGEST: bool> Epilogue<S>
    for Activate<'_, A, TANH, LARGEST>
{
    fn fits(&self, rows: usize, columns: usize) -> bool {
        Epilogue::<S>::fits(&self.keep, rows, columns) && (!LARGEST || rows * S::LANES <= self.largest_count)
    }
    #[inline(always)]
    unsafe fn put(self, simd: S, row: usize, column: usize, values: S::V) {
        let values = A::gelu::<TANH>(simd, values);
        // SAFETY: `fits` agreed.
        unsafe {
            if LARGEST {
                let place = self.largest.add(row * S::LANES);
                simd.store(place, simd.max(simd.load(place), values));
            }
            self.keep.put(simd, row, column, values);
        }
    }
}

/// gelu(input W + b) in the same dtype.
pub(super) fn activate_float<S: Simd, D: Float<S>>(
    simd: S,
    input: Rows<'_>,
    up: &Linear<S, D>,
    gelu: Gelu,
    output: &mut Operand,
) {
    output.shape::<S, D>(input.count, up.outputs());
    let stride = output.stride();
    let keep = Keep::<D>::new(output.words.words_mut(), stride);
    match gelu {
        Gelu::Erf => linear(simd, input, up, Activate::<D, false, false>::new(keep, &mut [])),
        Gelu::Tanh => linear(simd, input, up, Activate::<D, true, false>::new(keep, &mut [])),
    }
}

/// gelu(input W + b) as bytes: first in `A`, until each row's largest value is known.
pub(super) fn activate_bytes<S: Simd, A: Float<S>>(
    simd: S,
    input: Rows<'_>,
    up: &Linear<S, Int8>,
    gelu: Gelu,
    (staging, output): (&mut Operand, &mut Operand),
) {
    staging.shape::<S, A>(input.count, up.outputs());
    output.shape::<S, Int8>(input.count, up.outputs());
    // The largest values of each lane, `LANES` a row, live where a row's scale would.
    staging.scales.clear();
    staging.scales.resize(input.count * S::LANES, 0.0);
    let stride = staging.stride();
    let keep = Keep::<A>::new(staging.words.words_mut(), stride);
    let largest = &mut staging.scales[..];
    match gelu {
        Gelu::Erf => linear(simd, input, up, Activate::<A, false, true>::new(keep, largest)),
        Gelu::Tanh => linear(simd, input, up, Activate::<A, true, true>::new(keep, largest)),
    }
    simd.launch(ToBytes::<A> { staging, output, values: up.outputs(), _marker: PhantomData });
}

struct ToBytes<'a, A> {
    staging: &'a Operand,
    output: &'a mut Operand,
    values: usize,
    _marker: PhantomData<A>,
}

impl<S: Simd, A: Float<S>> Kernel<S> for ToBytes<'_, A> {
    type Output = ();
    #[inline(always)]
    fn run(self, simd: S) {
        let (stride, rows) = (self.output.stride(), self.output.rows);
        let from = self.staging.words.words().chunks_exact(self.staging.stride());
        let to = self.output.words.words_mut().chunks_exact_mut(stride);
        let scales = self.output.scales.iter_mut().zip(self.staging.scales.chunks_exact(S::LANES));
        for ((from, to), (scale, largest)) in from.zip(to).zip(scales).take(rows) {
            // SAFETY: a row has `LANES` largest values, and `values` values in both.
            unsafe {
                *scale = (simd.largest(simd.load(largest.as_ptr())) + GELU_SHIFT) / 255.0;
                let (inverse, shift) = (simd.splat(1.0 / *scale), simd.splat(GELU_SHIFT / *scale));
                for at in (0..self.values).step_by(S::LANES) {
                    let byte = simd.fma(A::load(simd, from.as_ptr(), at), inverse, shift);
                    simd.store_bytes(to.as_mut_ptr(), at, byte);
                }
            }
        }
    }
}
