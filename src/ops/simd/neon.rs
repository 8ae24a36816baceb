//! NEON, on every aarch64 processor, and what later ones add: byte dot products, bf16.
//!
//! Rust has no stable intrinsics for the dot products, so they are in assembly, one instruction each. They multiply a
//! vector by one lane of another, so that a word that stands for all lanes is loaded without being copied into them: that
//! copy would run on the pipes that multiply.

use super::tiles::NoTiles;
use super::{Kernel, Simd, SimdBf16};
use std::arch::aarch64::{
    float32x4_t, uint16x4_t, uint32x4_t, vabsq_f32, vaddq_f32, vaddq_s32, vaddvq_f32, vandq_u16, vbslq_f32,
    vcltq_u32, vcombine_u16, vcvtmq_s32_f32, vcvtnq_u32_f32, vcvtq_f32_s32, vdivq_f32, vdup_n_u16,
    vdupq_laneq_u32, vdupq_n_f32, vdupq_n_u16, vdupq_n_u32, vfmaq_f32, vfmaq_laneq_f32, vget_lane_u32,
    vld1_u16, vld1q_f32, vld1q_u32, vmaxq_f32, vmaxvq_f32, vminq_f32, vmulq_f32, vmulq_s16, vpadalq_s16,
    vqmovn_u16, vqmovn_u32, vreinterpret_u32_u8, vreinterpretq_f32_s32, vreinterpretq_f32_u32,
    vreinterpretq_s16_u16, vreinterpretq_s16_u32, vreinterpretq_s32_f32, vreinterpretq_s32_u32,
    vreinterpretq_u16_u32, vreinterpretq_u32_f32, vreinterpretq_u32_s32, vreinterpretq_u32_u16,
    vreinterpretq_u32_u64, vreinterpretq_u64_u32, vrndmq_f32, vshll_n_u16, vshlq_n_s16, vshlq_n_s32,
    vshrq_n_s16, vshrq_n_u16, vst1_u16, vst1q_f32, vst1q_u32, vsubq_f32, vtrn1q_u32, vtrn1q_u64, vtrn2q_u32,
    vtrn2q_u64, vzip1q_u16,
};
use std::arch::{asm, is_aarch64_feature_detected};
use std::marker::PhantomData;

/// Each `unsafe` below is an instruction that `self` proves, or the caller's promise about a pointer.
macro_rules! lanes {
    ($expression:expr) => {
        // SAFETY: `Quad` exists only where `detect` found the instructions; what is behind a
        // pointer is promised by who calls, as `Simd` demands.
        unsafe { $expression }
    };
}

/// What a processor with NEON has beyond it.
pub trait Level: Copy + Send + Sync + 'static {
    /// [`Simd::BYTE_OFFSET`].
    const BYTE_OFFSET: u8;
    /// Whether this machine is such a processor.
    fn is_here() -> bool;
    /// Runs a kernel compiled for it.
    ///
    /// # Safety
    /// [`Level::is_here`].
    unsafe fn launch<K: Kernel<Quad<Self>>>(simd: Quad<Self>, kernel: K) -> K::Output;
    /// [`Simd::dot_bytes`].
    ///
    /// # Safety
    /// [`Level::is_here`].
    unsafe fn dot_bytes(c: uint32x4_t, a: FirstLane, b: uint32x4_t) -> uint32x4_t;
}

/// A level with dot products of bf16.
pub trait HasBf16: Level {}

/// A word for all lanes, in the first one; the others are not read.
#[derive(Clone, Copy)]
pub struct FirstLane(uint32x4_t);

/// Nothing: Cortex-A72, Graviton 1.
#[derive(Clone, Copy, Debug)]
pub struct Plain;

impl Level for Plain {
    const BYTE_OFFSET: u8 = 0;
    fn is_here() -> bool {
        is_aarch64_feature_detected!("neon")
    }
    #[inline(always)]
    unsafe fn launch<K: Kernel<Quad<Self>>>(simd: Quad<Self>, kernel: K) -> K::Output {
        kernel.run(simd)
    }
    #[inline(always)]
    unsafe fn dot_bytes(c: uint32x4_t, a: FirstLane, b: uint32x4_t) -> uint32x4_t {
        // Even and odd bytes apart: a product of an unsigned byte and a signed one fits 16 bits, two added do not.
        lanes!({
            let a = vreinterpretq_u16_u32(vdupq_laneq_u32::<0>(a.0));
            let b = vreinterpretq_s16_u32(b);
            let a_even = vreinterpretq_s16_u16(vandq_u16(a, vdupq_n_u16(0xff)));
            let a_odd = vreinterpretq_s16_u16(vshrq_n_u16::<8>(a));
            let b_even = vshrq_n_s16::<8>(vshlq_n_s16::<8>(b));
            let b_odd = vshrq_n_s16::<8>(b);
            let even = vpadalq_s16(vreinterpretq_s32_u32(c), vmulq_s16(a_even, b_even));
            vreinterpretq_u32_s32(vpadalq_s16(even, vmulq_s16(a_odd, b_odd)))
        })
    }
}

macro_rules! level {
    ($name:ident, $doc:literal, $features:literal, $is_here:expr) => {
        #[doc = $doc]
        #[derive(Clone, Copy, Debug)]
        pub struct $name;

        impl Level for $name {
            // `sdot` multiplies signed bytes by signed ones. `usdot` (i8mm) is no faster, and on fewer processors.
            const BYTE_OFFSET: u8 = 128;
            fn is_here() -> bool {
                $is_here
            }
            #[inline(always)]
            unsafe fn launch<K: Kernel<Quad<Self>>>(simd: Quad<Self>, kernel: K) -> K::Output {
                #[target_feature(enable = $features)]
                fn with<K: Kernel<Quad<$name>>>(simd: Quad<$name>, kernel: K) -> K::Output {
                    kernel.run(simd)
                }
                // SAFETY: the caller promises the level, which has these features.
                unsafe { with(simd, kernel) }
            }
            #[inline(always)]
            unsafe fn dot_bytes(mut c: uint32x4_t, a: FirstLane, b: uint32x4_t) -> uint32x4_t {
                lanes!({
                    asm!("sdot {c:v}.4s, {b:v}.16b, {a:v}.4b[0]", c = inout(vreg) c, a = in(vreg) a.0,
                        b = in(vreg) b, options(pure, nomem, nostack, preserves_flags));
                });
                c
            }
        }
    };
}

level!(
    WithDot,
    "Byte dot products: Arm from Cortex-A76 and Neoverse N1, Apple from M1.",
    "neon,dotprod",
    Plain::is_here() && is_aarch64_feature_detected!("dotprod")
);
level!(
    WithBf16,
    "These and bf16: Arm from Neoverse V1 and N2, Apple from M2.",
    "neon,dotprod,bf16",
    WithDot::is_here() && is_aarch64_feature_detected!("bf16")
);
impl HasBf16 for WithBf16 {}

/// Four lanes. Its existence proves the instructions of its level.
#[derive(Clone, Copy, Debug)]
pub struct Quad<L>(PhantomData<L>);

/// NEON.
pub type Neon = Quad<Plain>;
/// NEON with byte dot products.
pub type NeonDot = Quad<WithDot>;
/// The same with bf16.
pub type NeonBf16 = Quad<WithBf16>;

impl<L: Level> Quad<L> {
    /// On a processor that has all of it.
    pub fn detect() -> Option<Self> {
        L::is_here().then_some(Self(PhantomData))
    }
}

impl<L: Level> Simd for Quad<L> {
    type Tiles = NoTiles;
    type V = float32x4_t;
    type W = uint32x4_t;
    type Broadcast = FirstLane;
    const LANES: usize = 4;
    const ROWS: usize = 12;
    const BYTE_OFFSET: u8 = L::BYTE_OFFSET;

    #[inline(always)]
    fn launch<K: Kernel<Self>>(self, kernel: K) -> K::Output {
        lanes!(L::launch(self, kernel))
    }

    #[inline(always)]
    fn splat(self, value: f32) -> float32x4_t {
        lanes!(vdupq_n_f32(value))
    }
    #[inline(always)]
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        lanes!(vaddq_f32(a, b))
    }
    #[inline(always)]
    fn sub(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        lanes!(vsubq_f32(a, b))
    }
    #[inline(always)]
    fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        lanes!(vmulq_f32(a, b))
    }
    #[inline(always)]
    fn div(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        lanes!(vdivq_f32(a, b))
    }
    #[inline(always)]
    fn fma(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        lanes!(vfmaq_f32(c, a, b))
    }
    #[inline(always)]
    fn max(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        lanes!(vmaxq_f32(a, b))
    }
    #[inline(always)]
    fn min(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        lanes!(vminq_f32(a, b))
    }
    #[inline(always)]
    fn abs(self, a: float32x4_t) -> float32x4_t {
        lanes!(vabsq_f32(a))
    }
    #[inline(always)]
    fn fraction(self, a: float32x4_t) -> float32x4_t {
        lanes!(vsubq_f32(a, vrndmq_f32(a)))
    }
    #[inline(always)]
    fn scale(self, a: float32x4_t, exponent: float32x4_t) -> float32x4_t {
        lanes!({
            let exponent = vshlq_n_s32::<23>(vcvtmq_s32_f32(exponent));
            vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(a), exponent))
        })
    }
    #[inline(always)]
    fn sum(self, a: float32x4_t) -> f32 {
        lanes!(vaddvq_f32(a))
    }
    #[inline(always)]
    fn largest(self, a: float32x4_t) -> f32 {
        lanes!(vmaxvq_f32(a))
    }
    #[inline(always)]
    fn first(self, count: usize, a: float32x4_t, other: float32x4_t) -> float32x4_t {
        const NUMBERS: [u32; 4] = [0, 1, 2, 3];
        lanes!({
            let count = vdupq_n_u32(count.min(Self::LANES) as u32);
            vbslq_f32(vcltq_u32(vld1q_u32(NUMBERS.as_ptr()), count), a, other)
        })
    }

    #[inline(always)]
    fn splat_word(self, word: u32) -> uint32x4_t {
        lanes!(vdupq_n_u32(word))
    }
    #[inline(always)]
    fn as_floats(self, a: uint32x4_t) -> float32x4_t {
        lanes!(vreinterpretq_f32_u32(a))
    }
    #[inline(always)]
    fn as_words(self, a: float32x4_t) -> uint32x4_t {
        lanes!(vreinterpretq_u32_f32(a))
    }
    #[inline(always)]
    fn to_floats(self, a: uint32x4_t) -> float32x4_t {
        lanes!(vcvtq_f32_s32(vreinterpretq_s32_u32(a)))
    }
    #[inline(always)]
    fn broadcast(self, word: u32) -> FirstLane {
        FirstLane(lanes!(vdupq_n_u32(word)))
    }
    #[inline(always)]
    fn dot_f32(self, c: float32x4_t, a: FirstLane, b: uint32x4_t) -> float32x4_t {
        lanes!(vfmaq_laneq_f32::<0>(c, vreinterpretq_f32_u32(b), vreinterpretq_f32_u32(a.0)))
    }
    #[inline(always)]
    fn dot_bytes(self, c: uint32x4_t, a: FirstLane, b: uint32x4_t) -> uint32x4_t {
        lanes!(L::dot_bytes(c, a, b))
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> float32x4_t {
        lanes!(vld1q_f32(from))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, a: float32x4_t) {
        lanes!(vst1q_f32(to, a))
    }
    #[inline(always)]
    unsafe fn load_words(self, from: *const u32) -> uint32x4_t {
        lanes!(vld1q_u32(from))
    }
    #[inline(always)]
    unsafe fn load_broadcast(self, from: *const u32, at: usize) -> FirstLane {
        let word;
        // A load that the compiler sees becomes `ld1r`, which fills all lanes.
        lanes!({
            asm!("ldr {word:s}, [{from}, {at}, lsl #2]", word = lateout(vreg) word, from = in(reg) from,
                at = in(reg) at, options(pure, readonly, nostack, preserves_flags));
        });
        FirstLane(word)
    }
    #[inline(always)]
    unsafe fn store_bytes(self, row: *mut u32, at: usize, a: float32x4_t) {
        // Saturating at every step, and at zero by the first.
        lanes!({
            let shorts = vqmovn_u32(vcvtnq_u32_f32(a));
            let bytes = vreinterpret_u32_u8(vqmovn_u16(vcombine_u16(shorts, shorts)));
            // Less 128 is the same as with the highest bit turned.
            let word = vget_lane_u32::<0>(bytes) ^ u32::from_ne_bytes([L::BYTE_OFFSET; 4]);
            row.cast::<u8>().add(at).cast::<u32>().write_unaligned(word);
        })
    }
    #[inline(always)]
    fn prefetch(self, address: *const u32) {
        lanes!(asm!("prfm pldl2keep, [{0}]", in(reg) address, options(readonly, nostack, preserves_flags)));
    }
    #[inline(always)]
    unsafe fn transpose(self, from: *const u32, stride: usize, rows: usize, to: *mut u32) {
        lanes!({
            let mut r = [vdupq_n_u32(0); 4];
            for (i, row) in r.iter_mut().enumerate().take(rows) {
                *row = vld1q_u32(from.add(i * stride));
            }
            // Words of the even and of the odd columns, from each pair of rows.
            let (even, odd) = (vtrn1q_u32(r[0], r[1]), vtrn2q_u32(r[0], r[1]));
            let (even_below, odd_below) = (vtrn1q_u32(r[2], r[3]), vtrn2q_u32(r[2], r[3]));
            for (i, (above, below)) in [(even, even_below), (odd, odd_below)].into_iter().enumerate() {
                let (above, below) = (vreinterpretq_u64_u32(above), vreinterpretq_u64_u32(below));
                vst1q_u32(to.add(i * 4), vreinterpretq_u32_u64(vtrn1q_u64(above, below)));
                vst1q_u32(to.add((2 + i) * 4), vreinterpretq_u32_u64(vtrn2q_u64(above, below)));
            }
        })
    }
}

impl<L: HasBf16> SimdBf16 for Quad<L> {
    #[inline(always)]
    fn dot_bf16(self, mut c: float32x4_t, a: FirstLane, b: uint32x4_t) -> float32x4_t {
        // Both products' sum, and then `c` plus it, are each rounded to odd, and subnormals are zeros, whatever the mode.
        lanes!({
            asm!("bfdot {c:v}.4s, {b:v}.8h, {a:v}.2h[0]", c = inout(vreg) c, a = in(vreg) a.0, b = in(vreg) b,
                options(pure, nomem, nostack, preserves_flags));
        });
        c
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u16) -> float32x4_t {
        lanes!(vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(from))))
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16, a: float32x4_t) {
        let half: uint16x4_t;
        lanes!({
            asm!("bfcvtn {half:v}.4h, {a:v}.4s", half = lateout(vreg) half, a = in(vreg) a,
                options(pure, nomem, nostack, preserves_flags));
            vst1_u16(to, half);
        })
    }
    #[inline(always)]
    unsafe fn pair_bf16(self, lower: *const u16, upper: Option<*const u16>) -> uint32x4_t {
        lanes!({
            let lower = vld1_u16(lower);
            let upper = upper.map_or(vdup_n_u16(0), |upper| vld1_u16(upper));
            let (lower, upper) = (vcombine_u16(lower, lower), vcombine_u16(upper, upper));
            vreinterpretq_u32_u16(vzip1q_u16(lower, upper))
        })
    }
}
