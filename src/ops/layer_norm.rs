//! Layer norm (Ba et al. 2016), in f32 and two passes: mean first, as the sum of squares alone cancels where the mean
//! is large; and the norm by the root mean square (Zhang and Sennrich 2019).

use super::dtype::{Dtype, F32};
use super::operand::{Operand, RowsMut};
use super::simd::{Kernel, Simd};
use super::{Buffer, PAD};
use std::marker::PhantomData;

/// A norm's parameters, padded with zeros.
pub struct Norm {
    gain: Buffer,
    bias: Buffer,
    /// Values of a row.
    hidden: usize,
    /// The same, padded.
    stride: usize,
    epsilon: f32,
    /// Whether the mean is subtracted.
    is_centred: bool,
}

impl Norm {
    /// `gain: [hidden]`, `bias: [hidden]`; `epsilon` is added to the variance.
    pub fn new(gain: &[f32], bias: &[f32], epsilon: f64) -> Self {
        let (hidden, stride) = (gain.len(), gain.len().next_multiple_of(PAD));
        let padded = |values: &[f32]| {
            let mut buffer = Buffer::zeros(stride);
            buffer.floats_mut()[..hidden].copy_from_slice(values);
            buffer
        };
        Self {
            gain: padded(gain),
            bias: padded(bias),
            hidden,
            stride,
            epsilon: epsilon as f32,
            is_centred: true,
        }
    }

    /// The norm that divides by the root mean square and does not subtract the mean.
    pub fn root_mean_square(gain: &[f32], epsilon: f64) -> Self {
        Self { is_centred: false, ..Self::new(gain, &vec![0.0; gain.len()], epsilon) }
    }
}

/// Normalises rows of `norm`'s stride; their padding is zero and stays so.
pub fn layer_norm<S: Simd>(simd: S, norm: &Norm, rows: &mut [f32]) {
    assert!(rows.len().is_multiple_of(norm.stride), "rows are whole");
    simd.launch(InPlace { norm, rows });
}

/// The same, and writes them into an operand from one of its rows on, while they are hot.
pub fn layer_norm_into<S: Simd, D: Dtype<S>>(
    simd: S,
    norm: &Norm,
    rows: &mut [f32],
    (operand, first): (&mut Operand, usize),
) {
    assert!(rows.len().is_multiple_of(norm.stride), "rows are whole");
    let place = operand.range_mut::<S, D>(first..first + rows.len() / norm.stride, norm.stride);
    simd.launch(AndEncode::<D> { norm, rows, place, _marker: PhantomData });
}

/// Normalises rows into an operand from one of its rows on, and leaves them as they are.
pub fn norm_into<S: Simd, D: Dtype<S>>(
    simd: S,
    norm: &Norm,
    rows: &[f32],
    (operand, first): (&mut Operand, usize),
    scratch: &mut Buffer,
) {
    assert!(rows.len().is_multiple_of(norm.stride), "rows are whole");
    let place = operand.range_mut::<S, D>(first..first + rows.len() / norm.stride, norm.stride);
    scratch.grow(norm.stride);
    let row = &mut scratch.floats_mut()[..norm.stride];
    simd.launch(CopyAndEncode::<D> { norm, rows, row, place, _marker: PhantomData });
}

struct InPlace<'a> {
    norm: &'a Norm,
    rows: &'a mut [f32],
}

impl<S: Simd> Kernel<S> for InPlace<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self, simd: S) {
        for row in self.rows.chunks_exact_mut(self.norm.stride) {
            normalise(simd, self.norm, row);
        }
    }
}

struct AndEncode<'a, D> {
    norm: &'a Norm,
    rows: &'a mut [f32],
    place: RowsMut<'a>,
    _marker: PhantomData<D>,
}

impl<S: Simd, D: Dtype<S>> Kernel<S> for AndEncode<'_, D> {
    type Output = ();
    #[inline(always)]
    fn run(self, simd: S) {
        let Self { norm, rows, place, .. } = self;
        let places = place.words.chunks_exact_mut(place.stride).zip(place.scales);
        for (row, (to, scale)) in rows.chunks_exact_mut(norm.stride).zip(places) {
            normalise(simd, norm, row);
            // SAFETY: a row has `stride` values, and `range_mut` found room for them in words.
            *scale = unsafe { D::encode::<F32>(simd, row.as_ptr().cast(), norm.stride, to.as_mut_ptr()) };
        }
    }
}

struct CopyAndEncode<'a, D> {
    norm: &'a Norm,
    rows: &'a [f32],
    /// A row to work in.
    row: &'a mut [f32],
    place: RowsMut<'a>,
    _marker: PhantomData<D>,
}

impl<S: Simd, D: Dtype<S>> Kernel<S> for CopyAndEncode<'_, D> {
    type Output = ();
    #[inline(always)]
    fn run(self, simd: S) {
        let Self { norm, rows, row, place, .. } = self;
        let places = place.words.chunks_exact_mut(place.stride).zip(place.scales);
        for (from, (to, scale)) in rows.chunks_exact(norm.stride).zip(places) {
            row.copy_from_slice(from);
            normalise(simd, norm, row);
            // SAFETY: a row has `stride` values, and `range_mut` found room for them in words.
            *scale = unsafe { D::encode::<F32>(simd, row.as_ptr().cast(), norm.stride, to.as_mut_ptr()) };
        }
    }
}

#[inline(always)]
fn normalise<S: Simd>(simd: S, norm: &Norm, row: &mut [f32]) {
    let Norm { gain, bias, hidden, stride, epsilon, is_centred } = norm;
    let (gain, bias) = (gain.floats().as_ptr(), bias.floats().as_ptr());
    assert_eq!(row.len(), *stride);
    let row = row.as_mut_ptr();
    // SAFETY: row, gain and bias have `stride` floats, a multiple of two vectors.
    unsafe {
        // Two sums each, so that additions need not wait for one another.
        let mut sums = [simd.splat(0.0); 2];
        for at in (0..*stride).step_by(2 * S::LANES) {
            for (n, sum) in sums.iter_mut().enumerate() {
                *sum = simd.add(*sum, simd.load(row.add(at + n * S::LANES)));
            }
        }
        let mean = if *is_centred { simd.sum(simd.add(sums[0], sums[1])) / *hidden as f32 } else { 0.0 };
        let mean = simd.splat(mean);
        let mut sums = [simd.splat(0.0); 2];
        for at in (0..*stride).step_by(2 * S::LANES) {
            for (n, sum) in sums.iter_mut().enumerate() {
                let at = at + n * S::LANES;
                let centred = simd.sub(simd.load(row.add(at)), mean);
                let centred = match hidden.saturating_sub(at) {
                    whole if whole >= S::LANES => centred,
                    rest => simd.first(rest, centred, simd.splat(0.0)),
                };
                *sum = simd.fma(centred, centred, *sum);
            }
        }
        let squares = simd.add(sums[0], sums[1]);
        let inverse = simd.splat(1.0 / (simd.sum(squares) / *hidden as f32 + epsilon).sqrt());
        for at in (0..*stride).step_by(S::LANES) {
            let centred = simd.mul(simd.sub(simd.load(row.add(at)), mean), inverse);
            let value = simd.fma(centred, simd.load(gain.add(at)), simd.load(bias.add(at)));
            simd.store(row.add(at), value);
        }
    }
}

/// The same in f64: `rows: [rows, hidden]`, without padding.
pub fn layer_norm_reference(gain: &[f32], bias: &[f32], epsilon: f64, rows: &[f32]) -> Vec<f32> {
    let row = |row: &[f32]| {
        let count = row.len() as f64;
        let mean = row.iter().map(|&value| f64::from(value)).sum::<f64>() / count;
        let variance = row.iter().map(|&value| (f64::from(value) - mean).powi(2)).sum::<f64>() / count;
        let deviation = (variance + epsilon).sqrt();
        let values = row.iter().zip(gain.iter().zip(bias));
        values
            .map(|(&value, (&gain, &bias))| {
                ((f64::from(value) - mean) / deviation * f64::from(gain) + f64::from(bias)) as f32
            })
            .collect::<Vec<_>>()
    };
    rows.chunks_exact(gain.len()).flat_map(row).collect()
}
