//! Helpers of several benches.

#![allow(dead_code, reason = "each bench uses a part of it")]

use podium::ops::{Dtype, Kernel, Simd};
use rand_distr::{Distribution, LogNormal};
use rand_pcg::Pcg64;
use std::marker::PhantomData;

/// Tokens of a query, special tokens included.
const QUERY: usize = 11;

/// The token counts of W1's 100 pairs; the same on each call.
pub fn lognormal() -> Vec<usize> {
    let (mut random, lengths) = (Pcg64::new(42, 0), LogNormal::new(90.0_f64.ln(), 0.5).expect("finite"));
    (0..100).map(|_| QUERY + (lengths.sample(&mut random).round() as usize).clamp(8, 256)).collect()
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Independent sums, as many as a register tile has.
const SUMS: usize = 24;

/// Multiplications on register operands: the peak of this processor in a dtype.
pub struct Peak<D> {
    steps: usize,
    _marker: PhantomData<D>,
}

impl<D> Peak<D> {
    pub fn new(steps: usize) -> Self {
        Self { steps, _marker: PhantomData }
    }

    /// Multiplications of a step.
    pub fn multiplications<S: Simd>() -> usize
    where
        D: Dtype<S>,
    {
        SUMS * S::LANES * D::GROUP
    }
}

impl<S: Simd, D: Dtype<S>> Kernel<S> for Peak<D> {
    type Output = f32;
    #[inline(always)]
    fn run(self, simd: S) -> f32 {
        let mut sums = [simd.splat(0.0); SUMS];
        let (a, b) = std::hint::black_box((simd.broadcast(0x0101_0101), simd.splat_word(0x0102_0102)));
        // Where a product and its sum are two instructions (int8 without byte products), the product is computed once for all
        // steps, and the peak is that of additions: too high. Operands from memory would make every peak too low.
        for _ in 0..self.steps {
            for sum in &mut sums {
                *sum = D::dot(simd, *sum, a, b);
            }
        }
        let mut all = simd.splat(0.0);
        for sum in sums {
            all = simd.add(all, sum);
        }
        simd.sum(all)
    }
}
