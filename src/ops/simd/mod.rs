//! What the CPU operations ask of a processor, and the processors that are known.
//!
//! An operation is written once, over [`Simd`], and compiled for each instruction set; which one runs
//! is decided when the program starts, so that no compiler flag is needed for speed. A value of an
//! implementing type is the proof that the processor has the instructions: it comes from `detect`.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
pub(super) mod tiles;

#[cfg(target_arch = "x86_64")]
pub use amx::{TilesMissing, tiles_permission};
#[cfg(target_arch = "x86_64")]
pub use avx2::{Avx2, AvxVnni};
#[cfg(target_arch = "x86_64")]
pub use avx512::{Amx, Avx512, Avx512Vnni};
#[cfg(target_arch = "aarch64")]
pub use neon::{Neon, NeonBf16, NeonDot};
pub use portable::{Emulated, Portable};
pub use tiles::Tiles;

/// Vectors of 32-bit lanes, as floats (`V`) or as words (`W`): bits, integers, two bf16 or four bytes.
///
/// Lane arithmetic is safe, as `self` proves that the instructions are there. What reads or writes
/// through a pointer is not: its caller upholds that `LANES` lanes lie behind it (or as many bf16 or
/// bytes); nothing needs to be aligned.
pub trait Simd: Copy + Send + Sync + 'static {
    /// Its tiles; vectors have 16 lanes where there are any.
    type Tiles: Tiles;
    /// `LANES` values of f32.
    type V: Copy;
    /// `LANES` words of 32 bits.
    type W: Copy;
    /// One word that a dot product multiplies with every lane of a vector.
    type Broadcast: Copy;
    /// Lanes of a vector.
    const LANES: usize;
    /// Rows of the register tile: as many as leave registers for two vectors of the other operand.
    const ROWS: usize;

    /// Values that a word of int8 holds: four bytes, or two values of 16 bits where the products of bytes would saturate.
    const BYTES_TO_WORD: usize = 4;

    /// Whether [`Simd::scale`] takes exponents that are too small for a number.
    const SCALES_TO_ZERO: bool = false;
    /// Subtracted from bytes by [`Simd::store_bytes`]: 128 where [`Simd::dot_bytes`] multiplies signed bytes only.
    const BYTE_OFFSET: u8 = 0;

    /// Runs a kernel compiled for this processor.
    fn launch<K: Kernel<Self>>(self, kernel: K) -> K::Output;

    /// The value in every lane.
    fn splat(self, value: f32) -> Self::V;
    /// a + b.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// a - b.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// a b.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// a / b.
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// a b + c, rounded once where the processor can.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger of both.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The smaller of both.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// Without the sign.
    fn abs(self, a: Self::V) -> Self::V;
    /// a - floor(a).
    fn fraction(self, a: Self::V) -> Self::V;
    /// a 2^floor(exponent), for `a` from 1 to 2 and exponents from -125 (or any, see [`Simd::SCALES_TO_ZERO`]) to 127.
    fn scale(self, a: Self::V, exponent: Self::V) -> Self::V;
    /// The sum of all lanes.
    fn sum(self, a: Self::V) -> f32;
    /// The largest lane.
    fn largest(self, a: Self::V) -> f32;
    /// The first `count` lanes of `a`, and `other` from there on.
    fn first(self, count: usize, a: Self::V, other: Self::V) -> Self::V;

    /// The word in every lane.
    fn splat_word(self, word: u32) -> Self::W;
    /// The bits as floats.
    fn as_floats(self, a: Self::W) -> Self::V;
    /// The bits as words.
    fn as_words(self, a: Self::V) -> Self::W;
    /// Signed integers to floats.
    fn to_floats(self, a: Self::W) -> Self::V;
    /// The word for every lane.
    fn broadcast(self, word: u32) -> Self::Broadcast;
    /// c plus the product of the floats `a` and `b`, rounded once where the processor can.
    fn dot_f32(self, c: Self::V, a: Self::Broadcast, b: Self::W) -> Self::V;
    /// c plus the dot product of the bytes of `a` and the signed ones of `b`, [`Simd::BYTES_TO_WORD`] to a word, exactly.
    /// Those of `a` are unsigned if [`Simd::BYTE_OFFSET`] is 0, else signed.
    fn dot_bytes(self, c: Self::W, a: Self::Broadcast, b: Self::W) -> Self::W;

    /// Reads floats.
    ///
    /// # Safety
    /// `LANES` floats lie behind `from`.
    unsafe fn load(self, from: *const f32) -> Self::V;
    /// Writes floats.
    ///
    /// # Safety
    /// `LANES` floats may be written from `to` on.
    unsafe fn store(self, to: *mut f32, a: Self::V);
    /// Reads words.
    ///
    /// # Safety
    /// `LANES` words lie behind `from`.
    unsafe fn load_words(self, from: *const u32) -> Self::W;
    /// Reads the word `at` words behind `from`, for every lane.
    ///
    /// # Safety
    /// There is such a word.
    #[inline(always)]
    unsafe fn load_broadcast(self, from: *const u32, at: usize) -> Self::Broadcast {
        // SAFETY: the caller promises the word.
        self.broadcast(unsafe { *from.add(at) })
    }
    /// Writes values from 0 to 255, less [`Simd::BYTE_OFFSET`], as [`Simd::BYTES_TO_WORD`] values to a word, the first being
    /// value `at` of the row, rounded to the nearest; values beyond are cut to that.
    ///
    /// # Safety
    /// `LANES` values from there on may be written, and `at` is a multiple of `LANES`.
    unsafe fn store_bytes(self, row: *mut u32, at: usize, a: Self::V);
    /// Fetches what lies behind an address into the second-level cache, where the processor can. Any address is allowed.
    #[inline(always)]
    fn prefetch(self, _address: *const u32) {}
    /// Writes the transpose of a square of `LANES` by `LANES` words; rows from `rows` on are zeros.
    ///
    /// # Safety
    /// `LANES` words lie behind each of the first `rows` rows, `stride` words apart from `from` on;
    /// `LANES * LANES` words may be written from `to` on.
    unsafe fn transpose(self, from: *const u32, stride: usize, rows: usize, to: *mut u32);
}

/// A processor with bf16: two to a word, the first in the lower half.
pub trait SimdBf16: Simd {
    /// c plus the dot product of both bf16 of `a` and `b`.
    fn dot_bf16(self, c: Self::V, a: Self::Broadcast, b: Self::W) -> Self::V;
    /// Reads bf16.
    ///
    /// # Safety
    /// `LANES` bf16 lie behind `from`.
    unsafe fn load_bf16(self, from: *const u16) -> Self::V;
    /// Writes floats as bf16, rounded to the nearest.
    ///
    /// # Safety
    /// `LANES` bf16 may be written from `to` on.
    unsafe fn store_bf16(self, to: *mut u16, a: Self::V);
    /// Words of two bf16: the lower from one row, the upper from another, or zero where there is none.
    ///
    /// # Safety
    /// `LANES` bf16 lie behind `lower`, and behind `upper` if it is given.
    unsafe fn pair_bf16(self, lower: *const u16, upper: Option<*const u16>) -> Self::W;
}

/// A piece of work that is compiled for a processor: [`Simd::launch`] runs it.
pub trait Kernel<S: Simd> {
    /// What it returns.
    type Output;
    /// Does the work. Implementations are `#[inline(always)]`, and so is all that they call with
    /// vectors: only inside `launch` are there instructions for them.
    fn run(self, simd: S) -> Self::Output;
}
