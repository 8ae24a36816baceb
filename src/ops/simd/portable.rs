//! Plain Rust, for any processor; the compiler makes of it what it can.

use super::tiles::{EmulatedTiles, NoTiles, Tiles};
use super::{Kernel, Simd, SimdBf16};
use half::bf16;
use std::marker::PhantomData;

/// `LANES` lanes in an array, and perhaps tiles.
#[derive(Clone, Copy, Debug)]
pub struct Plain<const LANES: usize, T>(PhantomData<T>);

impl<const LANES: usize, T> Default for Plain<LANES, T> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

/// Eight lanes.
pub type Portable = Plain<8, NoTiles>;
/// Sixteen lanes and tiles, as AMX has them: slow, for tests.
pub type Emulated = Plain<16, EmulatedTiles>;

/// Of numbers that an `i32` holds; `f32::floor` is a call on plain x86-64.
#[inline(always)]
fn floor(a: f32) -> i32 {
    let cut = a as i32;
    cut - i32::from(cut as f32 > a)
}

#[inline(always)]
fn each<const LANES: usize, A: Copy, B>(a: [A; LANES], f: impl Fn(A) -> B) -> [B; LANES] {
    a.map(f)
}

#[inline(always)]
fn both<const LANES: usize, A: Copy, B>(a: [A; LANES], b: [A; LANES], f: impl Fn(A, A) -> B) -> [B; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl<const LANES: usize, T: Tiles + Copy + Send + Sync + 'static> Simd for Plain<LANES, T> {
    type Tiles = T;
    type V = [f32; LANES];
    type W = [u32; LANES];
    type Broadcast = [u32; LANES];
    const LANES: usize = LANES;
    const ROWS: usize = 4;

    #[inline(always)]
    fn launch<K: Kernel<Self>>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::V {
        [value; LANES]
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        both(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        both(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        both(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        both(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // `mul_add` is one instruction on aarch64, and a call into the C library on plain x86-64.
        let fma = |i: usize| {
            if cfg!(target_arch = "aarch64") { a[i].mul_add(b[i], c[i]) } else { a[i] * b[i] + c[i] }
        };
        std::array::from_fn(fma)
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        both(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        both(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn abs(self, a: Self::V) -> Self::V {
        each(a, f32::abs)
    }
    #[inline(always)]
    fn fraction(self, a: Self::V) -> Self::V {
        each(a, |a| a - floor(a) as f32)
    }
    #[inline(always)]
    fn scale(self, a: Self::V, exponent: Self::V) -> Self::V {
        both(a, exponent, |a, exponent| a * f32::from_bits(((floor(exponent) + 127) << 23).cast_unsigned()))
    }
    #[inline(always)]
    fn sum(self, a: Self::V) -> f32 {
        let (mut a, mut half) = (a, LANES / 2);
        while half > 0 {
            (0..half).for_each(|i| a[i] += a[i + half]);
            half /= 2;
        }
        a[0]
    }
    #[inline(always)]
    fn largest(self, a: Self::V) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    fn first(self, count: usize, a: Self::V, other: Self::V) -> Self::V {
        std::array::from_fn(|i| if i < count { a[i] } else { other[i] })
    }

    #[inline(always)]
    fn splat_word(self, word: u32) -> Self::W {
        [word; LANES]
    }
    #[inline(always)]
    fn as_floats(self, a: Self::W) -> Self::V {
        each(a, f32::from_bits)
    }
    #[inline(always)]
    fn as_words(self, a: Self::V) -> Self::W {
        each(a, f32::to_bits)
    }
    #[inline(always)]
    fn to_floats(self, a: Self::W) -> Self::V {
        each(a, |word| word.cast_signed() as f32)
    }
    #[inline(always)]
    fn broadcast(self, word: u32) -> Self::W {
        [word; LANES]
    }
    #[inline(always)]
    fn dot_f32(self, c: Self::V, a: Self::W, b: Self::W) -> Self::V {
        self.fma(self.as_floats(a), self.as_floats(b), c)
    }
    #[inline(always)]
    fn dot_bytes(self, c: Self::W, a: Self::W, b: Self::W) -> Self::W {
        let dot = |i: usize| {
            let (a, b) = (a[i].to_le_bytes(), b[i].to_le_bytes());
            let products = (0..4).map(|byte| i32::from(a[byte]) * i32::from(b[byte].cast_signed()));
            c[i].cast_signed().wrapping_add(products.sum()).cast_unsigned()
        };
        std::array::from_fn(dot)
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::V {
        // SAFETY: the caller promises the lanes.
        unsafe { from.cast::<Self::V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, a: Self::V) {
        // SAFETY: the caller promises the lanes.
        unsafe { to.cast::<Self::V>().write_unaligned(a) }
    }
    #[inline(always)]
    unsafe fn load_words(self, from: *const u32) -> Self::W {
        // SAFETY: the caller promises the lanes.
        unsafe { from.cast::<Self::W>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_bytes(self, row: *mut u32, at: usize, a: Self::V) {
        let bytes = each(a, |value| value.round_ties_even() as u8);
        // SAFETY: the caller promises the lanes.
        unsafe { row.cast::<u8>().add(at).cast::<[u8; LANES]>().write_unaligned(bytes) }
    }
    #[inline(always)]
    unsafe fn transpose(self, from: *const u32, stride: usize, rows: usize, to: *mut u32) {
        for row in 0..LANES {
            for column in 0..LANES {
                // SAFETY: the caller promises the rows and the square.
                unsafe {
                    let word = if row < rows { *from.add(row * stride + column) } else { 0 };
                    *to.add(column * LANES + row) = word;
                }
            }
        }
    }
}

impl<const LANES: usize, T: Tiles + Copy + Send + Sync + 'static> SimdBf16 for Plain<LANES, T> {
    #[inline(always)]
    fn dot_bf16(self, c: Self::V, a: Self::W, b: Self::W) -> Self::V {
        let lower = |word: u32| f32::from_bits(word << 16);
        let upper = |word: u32| f32::from_bits(word & 0xffff_0000);
        std::array::from_fn(|i| (c[i] + lower(a[i]) * lower(b[i])) + upper(a[i]) * upper(b[i]))
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u16) -> Self::V {
        // SAFETY: the caller promises the lanes.
        let bits = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        each(bits, |bits| bf16::from_bits(bits).to_f32())
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16, a: Self::V) {
        let bits = each(a, |value| bf16::from_f32(value).to_bits());
        // SAFETY: the caller promises the lanes.
        unsafe { to.cast::<[u16; LANES]>().write_unaligned(bits) }
    }
    #[inline(always)]
    unsafe fn pair_bf16(self, lower: *const u16, upper: Option<*const u16>) -> Self::W {
        // SAFETY: the caller promises the lanes.
        let read = |from: *const u16| unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        let (lower, upper) = (read(lower), upper.map_or([0; LANES], read));
        both(lower, upper, |lower, upper| u32::from(lower) | u32::from(upper) << 16)
    }
}
