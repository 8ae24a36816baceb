//! How numbers are held in the words that matrices are made of: one f32, two bf16, or four bytes.

use super::Gelu;
use super::activate::{activate_bytes, activate_float};
use super::linear::Linear;
use super::math::{EXP2_COARSE, EXP2_RISING, exp2, gelu_erf, gelu_erf_coarse, gelu_tanh, silu};
use super::operand::{Operand, Rows};
use super::simd::tiles::{Block, Tiles};
use super::simd::{Simd, SimdBf16};
use half::bf16;

/// Full precision.
#[derive(Clone, Copy, Debug)]
pub struct F32;

/// Eight bits of mantissa, summed in f32.
#[derive(Clone, Copy, Debug)]
pub struct Bf16;

/// Weights as signed bytes with a scale for each output; activations as unsigned bytes with a scale for
/// each token, computed from its values at run time. Sums of products are exact in 32 bits.
#[derive(Clone, Copy, Debug)]
pub struct Int8;

/// The unsigned byte that stands for zero in activations of both signs.
const ZERO: i32 = 128;
/// Added to outputs of a GELU, whose least value is -0.17004, so that they use all bytes.
pub(super) const GELU_SHIFT: f32 = 0.1701;
/// A row whose largest magnitude is below this counts as zero, so that scales stay finite.
const TINY: f32 = 1e-20;

/// The kind of values that a linear map reads; int8 encodes the two differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Values of both signs.
    Signed,
    /// Outputs of a GELU.
    Activated,
}

/// One output's weights in words, and how its sums become values: they start from `start` (bits of
/// the accumulator), and bytes are then multiplied by `scale` and shifted by `bias`.
pub struct WeightRow {
    /// `[inputs / GROUP]`.
    pub words: Vec<u32>,
    /// What the accumulator starts from.
    pub start: u32,
    /// The row's scale.
    pub scale: f32,
    /// The row's bias.
    pub bias: f32,
}

/// A representation of numbers on a processor.
pub trait Dtype<S: Simd>: Copy + Send + Sync + 'static {
    /// Values in a word.
    const GROUP: usize;
    /// Whether products are those of [`Dtype::multiply`].
    const ON_TILES: bool = false;
    /// A block of products on tiles.
    ///
    /// # Safety
    /// [`Dtype::ON_TILES`], and what [`Tiles::bf16`](super::Tiles::bf16) asks for.
    unsafe fn multiply(_block: &Block) {
        unreachable!("this dtype has no products on tiles here")
    }
    /// Sums plus the products of the values in `a` and in each word of `b`.
    fn dot(simd: S, sums: S::V, a: S::Broadcast, b: S::W) -> S::V;
    /// Converts sums to values by a row's scale and the columns' scales and biases. Sums of floats are values already.
    #[inline(always)]
    fn finish(_simd: S, sums: S::V, _row_scale: f32, _scale: S::V, _bias: S::V) -> S::V {
        sums
    }
    /// Encodes one output's weights, `[inputs]`.
    fn encode_weights(row: &[f32], bias: f32, input: Input) -> WeightRow;
    /// Encodes a row of values of both signs from dtype `A`, and returns its scale.
    ///
    /// # Safety
    /// `values` values lie behind `from`, `values / GROUP` words may be written from `to` on, and
    /// `values` is a multiple of [`PAD`](super::PAD).
    unsafe fn encode<A: Float<S>>(simd: S, from: *const u32, values: usize, to: *mut u32) -> f32;
    /// gelu(input W + b) as the next map's input; bytes stay in `staging` until a row's scale is known.
    fn activate<A: Float<S>>(
        simd: S,
        input: Rows<'_>,
        up: &Linear<S, Self>,
        gelu: Gelu,
        staging_and_output: (&mut Operand, &mut Operand),
    );
}

/// A dtype whose values can be read back, as attention needs it.
pub trait Float<S: Simd>: Dtype<S> {
    /// Writes values, the first being value `at` of the row.
    ///
    /// # Safety
    /// `LANES` values from there on may be written.
    unsafe fn store(simd: S, row: *mut u32, at: usize, values: S::V);
    /// Reads values, the first being value `at` of the row.
    ///
    /// # Safety
    /// `LANES` values lie there.
    unsafe fn load(simd: S, row: *const u32, at: usize) -> S::V;
    /// `LANES` words, each of which holds one value of `GROUP` rows, from value `at` of each row on. Rows are `stride` words
    /// apart; those from `rows` on are zeros.
    ///
    /// # Safety
    /// `LANES` values from `at` on lie in each row that is there; at least one is.
    unsafe fn pair_rows(simd: S, from: *const u32, stride: usize, rows: usize, at: usize) -> S::W;
    /// 2^x, as precise as the dtype needs it.
    fn exp2(simd: S, x: S::V) -> S::V;
    /// The activation, as precise as the dtype needs it.
    fn gelu<const TANH: bool>(simd: S, x: S::V) -> S::V;
    /// x / (1 + e^-x), as precise as the dtype needs it.
    fn silu(simd: S, x: S::V) -> S::V;
}

/// [`Dtype::encode`] for dtypes without scales.
#[inline(always)]
unsafe fn encode_float<S: Simd, D: Float<S>, A: Float<S>>(
    simd: S,
    from: *const u32,
    values: usize,
    to: *mut u32,
) -> f32 {
    for at in (0..values).step_by(S::LANES) {
        // SAFETY: the caller promises both rows, and PAD is a multiple of LANES.
        unsafe { D::store(simd, to, at, A::load(simd, from, at)) };
    }
    1.0
}

impl<S: Simd> Dtype<S> for F32 {
    const GROUP: usize = 1;
    #[inline(always)]
    fn dot(simd: S, sums: S::V, a: S::Broadcast, b: S::W) -> S::V {
        simd.dot_f32(sums, a, b)
    }
    fn encode_weights(row: &[f32], bias: f32, _: Input) -> WeightRow {
        let words = row.iter().map(|weight| weight.to_bits()).collect();
        WeightRow { words, start: bias.to_bits(), scale: 1.0, bias: 0.0 }
    }
    #[inline(always)]
    unsafe fn encode<A: Float<S>>(simd: S, from: *const u32, values: usize, to: *mut u32) -> f32 {
        // SAFETY: the caller promises both rows.
        unsafe { encode_float::<S, Self, A>(simd, from, values, to) }
    }
    fn activate<A: Float<S>>(
        simd: S,
        input: Rows<'_>,
        up: &Linear<S, Self>,
        gelu: Gelu,
        (_, output): (&mut Operand, &mut Operand),
    ) {
        activate_float(simd, input, up, gelu, output);
    }
}

impl<S: Simd> Float<S> for F32 {
    #[inline(always)]
    unsafe fn store(simd: S, row: *mut u32, at: usize, values: S::V) {
        // SAFETY: the caller promises the row.
        unsafe { simd.store(row.cast::<f32>().add(at), values) }
    }
    #[inline(always)]
    unsafe fn load(simd: S, row: *const u32, at: usize) -> S::V {
        // SAFETY: the caller promises the row.
        unsafe { simd.load(row.cast::<f32>().add(at)) }
    }
    #[inline(always)]
    unsafe fn pair_rows(simd: S, from: *const u32, _: usize, _: usize, at: usize) -> S::W {
        // SAFETY: the caller promises the row.
        unsafe { simd.load_words(from.add(at)) }
    }
    #[inline(always)]
    fn exp2(simd: S, x: S::V) -> S::V {
        exp2(simd, x, &EXP2_RISING)
    }
    #[inline(always)]
    fn gelu<const TANH: bool>(simd: S, x: S::V) -> S::V {
        if TANH { gelu_tanh(simd, x, &EXP2_RISING) } else { gelu_erf(simd, x) }
    }
    #[inline(always)]
    fn silu(simd: S, x: S::V) -> S::V {
        silu(simd, x, &EXP2_RISING)
    }
}

impl<S: SimdBf16> Dtype<S> for Bf16 {
    const GROUP: usize = 2;
    const ON_TILES: bool = S::Tiles::HERE;
    #[inline(always)]
    unsafe fn multiply(block: &Block) {
        // SAFETY: the caller promises the same.
        unsafe { S::Tiles::bf16(block) }
    }
    #[inline(always)]
    fn dot(simd: S, sums: S::V, a: S::Broadcast, b: S::W) -> S::V {
        simd.dot_bf16(sums, a, b)
    }
    fn encode_weights(row: &[f32], bias: f32, _: Input) -> WeightRow {
        let bits = |weight: f32| u32::from(bf16::from_f32(weight).to_bits());
        let words = row.as_chunks().0.iter().map(|&[lower, upper]| bits(lower) | bits(upper) << 16).collect();
        WeightRow { words, start: bias.to_bits(), scale: 1.0, bias: 0.0 }
    }
    #[inline(always)]
    unsafe fn encode<A: Float<S>>(simd: S, from: *const u32, values: usize, to: *mut u32) -> f32 {
        // SAFETY: the caller promises both rows.
        unsafe { encode_float::<S, Self, A>(simd, from, values, to) }
    }
    fn activate<A: Float<S>>(
        simd: S,
        input: Rows<'_>,
        up: &Linear<S, Self>,
        gelu: Gelu,
        (_, output): (&mut Operand, &mut Operand),
    ) {
        activate_float(simd, input, up, gelu, output);
    }
}

impl<S: SimdBf16> Float<S> for Bf16 {
    #[inline(always)]
    unsafe fn store(simd: S, row: *mut u32, at: usize, values: S::V) {
        // SAFETY: the caller promises the row.
        unsafe { simd.store_bf16(row.cast::<u16>().add(at), values) }
    }
    #[inline(always)]
    unsafe fn load(simd: S, row: *const u32, at: usize) -> S::V {
        // SAFETY: the caller promises the row.
        unsafe { simd.load_bf16(row.cast::<u16>().add(at)) }
    }
    #[inline(always)]
    unsafe fn pair_rows(simd: S, from: *const u32, stride: usize, rows: usize, at: usize) -> S::W {
        // SAFETY: the caller promises the rows.
        unsafe {
            let upper = if rows > 1 { Some(from.add(stride).cast::<u16>().add(at)) } else { None };
            simd.pair_bf16(from.cast::<u16>().add(at), upper)
        }
    }
    #[inline(always)]
    fn exp2(simd: S, x: S::V) -> S::V {
        exp2(simd, x, &EXP2_COARSE)
    }
    #[inline(always)]
    fn gelu<const TANH: bool>(simd: S, x: S::V) -> S::V {
        if TANH { gelu_tanh(simd, x, &EXP2_COARSE) } else { gelu_erf_coarse(simd, x) }
    }
    #[inline(always)]
    fn silu(simd: S, x: S::V) -> S::V {
        silu(simd, x, &EXP2_COARSE)
    }
}

impl<S: Simd> Dtype<S> for Int8 {
    const GROUP: usize = S::BYTES_TO_WORD;
    const ON_TILES: bool = S::Tiles::HERE;
    #[inline(always)]
    unsafe fn multiply(block: &Block) {
        // SAFETY: the caller promises the same.
        unsafe { S::Tiles::bytes(block) }
    }
    #[inline(always)]
    fn dot(simd: S, sums: S::V, a: S::Broadcast, b: S::W) -> S::V {
        simd.as_floats(simd.dot_bytes(simd.as_words(sums), a, b))
    }
    #[inline(always)]
    fn finish(simd: S, sums: S::V, row_scale: f32, scale: S::V, bias: S::V) -> S::V {
        let whole = simd.to_floats(simd.as_words(sums));
        simd.fma(simd.mul(whole, simd.splat(row_scale)), scale, bias)
    }
    fn encode_weights(row: &[f32], bias: f32, input: Input) -> WeightRow {
        let largest = row.iter().fold(TINY, |largest, weight| largest.max(weight.abs()));
        let scale = largest / 127.0;
        let bytes: Vec<i8> = row.iter().map(|weight| (weight / scale).round() as i8).collect();
        let word = |values: &[i8]| match *values {
            [a, b, c, d] => u32::from_le_bytes([a, b, c, d].map(i8::cast_unsigned)),
            [a, b] => {
                let bits = |value: i8| u32::from(i16::from(value).cast_unsigned());
                bits(a) | bits(b) << 16
            }
            _ => unreachable!("a word holds four bytes or two values of 16 bits"),
        };
        let words = bytes.chunks_exact(S::BYTES_TO_WORD).map(word);
        let sum: i32 = bytes.iter().map(|&byte| i32::from(byte)).sum();
        let (zero, bias) = match input {
            Input::Signed => (ZERO, bias),
            Input::Activated => (0, bias - GELU_SHIFT * scale * sum as f32),
        };
        let start = (i32::from(S::BYTE_OFFSET) - zero) * sum;
        WeightRow { words: words.collect(), start: start.cast_unsigned(), scale, bias }
    }
    #[inline(always)]
    unsafe fn encode<A: Float<S>>(simd: S, from: *const u32, values: usize, to: *mut u32) -> f32 {
        let mut largest = simd.splat(TINY);
        for at in (0..values).step_by(S::LANES) {
            // SAFETY: the caller promises the row, and PAD is a multiple of LANES.
            largest = simd.max(largest, simd.abs(unsafe { A::load(simd, from, at) }));
        }
        let largest = simd.largest(largest);
        let (inverse, zero) = (simd.splat(127.0 / largest), simd.splat(ZERO as f32));
        for at in (0..values).step_by(S::LANES) {
            // SAFETY: the caller promises both rows.
            unsafe {
                let byte = simd.fma(A::load(simd, from, at), inverse, zero);
                simd.store_bytes(to, at, byte);
            }
        }
        largest / 127.0
    }
    fn activate<A: Float<S>>(
        simd: S,
        input: Rows<'_>,
        up: &Linear<S, Self>,
        gelu: Gelu,
        (staging, output): (&mut Operand, &mut Operand),
    ) {
        activate_bytes::<S, A>(simd, input, up, gelu, (staging, output));
    }
}
