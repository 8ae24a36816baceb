//! AVX-512 with byte dot products (VNNI), and what later processors add: bf16, tiles.

use super::amx::{HardwareTiles, tiles_permission};
use super::tiles::{NoTiles, Tiles};
use super::{Kernel, Simd, SimdBf16};
use std::arch::x86_64::{
    __m256i, __m512, __m512bh, __m512i, _MM_HINT_T1, _mm_prefetch, _mm_storeu_si128, _mm256_loadu_si256,
    _mm256_storeu_si256, _mm512_abs_ps, _mm512_add_ps, _mm512_castps_si512, _mm512_castsi512_ps,
    _mm512_cvtepi32_ps, _mm512_cvtepu16_epi32, _mm512_cvtneps_pbh, _mm512_cvtps_epi32,
    _mm512_cvtusepi32_epi8, _mm512_div_ps, _mm512_dpbf16_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps,
    _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mask_mov_ps, _mm512_max_epi32, _mm512_max_ps, _mm512_min_ps,
    _mm512_mul_ps, _mm512_or_si512, _mm512_reduce_add_ps, _mm512_reduce_max_ps, _mm512_reduce_ps,
    _mm512_scalef_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_si512, _mm512_shuffle_i32x4,
    _mm512_slli_epi32, _mm512_storeu_ps, _mm512_storeu_si512, _mm512_sub_ps, _mm512_unpackhi_epi32,
    _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};
use std::marker::PhantomData;

/// What a processor with AVX-512 F, BW, DQ, VL and VNNI has beyond these.
pub trait Level: Copy + Send + Sync + 'static {
    /// Its tiles.
    type Tiles: Tiles;
    /// Whether this machine is such a processor.
    fn is_here() -> bool;
    /// Runs a kernel compiled for it.
    ///
    /// # Safety
    /// [`Level::is_here`].
    unsafe fn launch<K: Kernel<Zmm<Self>>>(simd: Zmm<Self>, kernel: K) -> K::Output;
}

/// A level with dot products of bf16.
pub trait HasBf16: Level {}

macro_rules! level {
    ($name:ident, $doc:literal, $tiles:ty, $features:literal, $is_here:expr) => {
        #[doc = $doc]
        #[derive(Clone, Copy, Debug)]
        pub struct $name;

        impl Level for $name {
            type Tiles = $tiles;
            fn is_here() -> bool {
                $is_here
            }
            #[inline(always)]
            unsafe fn launch<K: Kernel<Zmm<Self>>>(simd: Zmm<Self>, kernel: K) -> K::Output {
                #[target_feature(enable = $features)]
                fn with<K: Kernel<Zmm<$name>>>(simd: Zmm<$name>, kernel: K) -> K::Output {
                    kernel.run(simd)
                }
                // SAFETY: the caller promises the level, which has these features.
                unsafe { with(simd, kernel) }
            }
        }
    };
}

level!(
    VnniOnly,
    "Nothing: Intel's Cascade Lake and Ice Lake.",
    NoTiles,
    "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni",
    has_vnni()
);
level!(
    WithBf16,
    "bf16: AMD from Zen 4, Intel from Sapphire Rapids.",
    NoTiles,
    "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16",
    has_vnni() && is_x86_feature_detected!("avx512bf16")
);
level!(
    WithTiles,
    "bf16 and AMX: Intel's servers from Sapphire Rapids.",
    HardwareTiles,
    "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16",
    WithBf16::is_here() && tiles_permission().is_ok()
);
impl HasBf16 for WithBf16 {}
impl HasBf16 for WithTiles {}

fn has_vnni() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
}

/// Sixteen lanes. Its existence proves the instructions of its level.
#[derive(Clone, Copy, Debug)]
pub struct Zmm<L>(PhantomData<L>);

/// AVX-512 with VNNI.
pub type Avx512Vnni = Zmm<VnniOnly>;
/// AVX-512 with VNNI and bf16.
pub type Avx512 = Zmm<WithBf16>;
/// The same with tiles, which this process may use.
pub type Amx = Zmm<WithTiles>;

impl<L: Level> Zmm<L> {
    /// On a processor that has all of it.
    pub fn detect() -> Option<Self> {
        L::is_here().then_some(Self(PhantomData))
    }
}

/// Each `unsafe` below is an instruction that `self` proves, or the caller's promise about a pointer.
macro_rules! lanes {
    ($expression:expr) => {
        // SAFETY: `Zmm` exists only where `detect` found the instructions; what is behind a
        // pointer is promised by who calls, as `Simd` demands.
        unsafe { $expression }
    };
}

impl<L: Level> Simd for Zmm<L> {
    type Tiles = L::Tiles;
    type V = __m512;
    type W = __m512i;
    type Broadcast = __m512i;
    const LANES: usize = 16;
    const ROWS: usize = 12;
    const SCALES_TO_ZERO: bool = true;

    #[inline(always)]
    fn launch<K: Kernel<Self>>(self, kernel: K) -> K::Output {
        lanes!(L::launch(self, kernel))
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        lanes!(_mm512_set1_ps(value))
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        lanes!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        lanes!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        lanes!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        lanes!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        lanes!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        lanes!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        lanes!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn abs(self, a: __m512) -> __m512 {
        lanes!(_mm512_abs_ps(a))
    }
    #[inline(always)]
    fn fraction(self, a: __m512) -> __m512 {
        // 9: down, and no exceptions.
        lanes!(_mm512_reduce_ps::<9>(a))
    }
    #[inline(always)]
    fn scale(self, a: __m512, exponent: __m512) -> __m512 {
        lanes!(_mm512_scalef_ps(a, exponent))
    }
    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        lanes!(_mm512_reduce_add_ps(a))
    }
    #[inline(always)]
    fn largest(self, a: __m512) -> f32 {
        lanes!(_mm512_reduce_max_ps(a))
    }
    #[inline(always)]
    fn first(self, count: usize, a: __m512, other: __m512) -> __m512 {
        let mask = ((1_u32 << count.min(Self::LANES)) - 1) as u16;
        lanes!(_mm512_mask_mov_ps(other, mask, a))
    }

    #[inline(always)]
    fn splat_word(self, word: u32) -> __m512i {
        lanes!(_mm512_set1_epi32(word.cast_signed()))
    }
    #[inline(always)]
    fn as_floats(self, a: __m512i) -> __m512 {
        lanes!(_mm512_castsi512_ps(a))
    }
    #[inline(always)]
    fn as_words(self, a: __m512) -> __m512i {
        lanes!(_mm512_castps_si512(a))
    }
    #[inline(always)]
    fn to_floats(self, a: __m512i) -> __m512 {
        lanes!(_mm512_cvtepi32_ps(a))
    }
    #[inline(always)]
    fn broadcast(self, word: u32) -> __m512i {
        self.splat_word(word)
    }
    #[inline(always)]
    fn dot_f32(self, c: __m512, a: __m512i, b: __m512i) -> __m512 {
        self.fma(self.as_floats(a), self.as_floats(b), c)
    }
    #[inline(always)]
    fn dot_bytes(self, c: __m512i, a: __m512i, b: __m512i) -> __m512i {
        lanes!(_mm512_dpbusd_epi32(c, a, b))
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m512 {
        lanes!(_mm512_loadu_ps(from))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, a: __m512) {
        lanes!(_mm512_storeu_ps(to, a))
    }
    #[inline(always)]
    unsafe fn load_words(self, from: *const u32) -> __m512i {
        lanes!(_mm512_loadu_si512(from.cast()))
    }
    #[inline(always)]
    unsafe fn store_bytes(self, row: *mut u32, at: usize, a: __m512) {
        lanes!({
            let whole = _mm512_max_epi32(_mm512_cvtps_epi32(a), _mm512_setzero_si512());
            _mm_storeu_si128(row.cast::<u8>().add(at).cast(), _mm512_cvtusepi32_epi8(whole));
        })
    }
    #[inline(always)]
    fn prefetch(self, address: *const u32) {
        lanes!(_mm_prefetch::<_MM_HINT_T1>(address.cast()));
    }
    #[inline(always)]
    unsafe fn transpose(self, from: *const u32, stride: usize, rows: usize, to: *mut u32) {
        lanes!({
            let mut r = [_mm512_setzero_si512(); 16];
            for (i, row) in r.iter_mut().enumerate().take(rows) {
                *row = _mm512_loadu_si512(from.add(i * stride).cast());
            }
            // Pairs of rows word by word, then pairs of pairs: t[4i + k] has words k, k + 4, ... of
            // rows 4i to 4i + 3.
            let mut t = r;
            for i in 0..8 {
                t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
                t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
            }
            for i in 0..4 {
                r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
                r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
                r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
                r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
            }
            // Then quarters of 128 bits across the four groups of rows.
            for i in 0..4 {
                let (a, b, c, d) = (r[i], r[4 + i], r[8 + i], r[12 + i]);
                let (ab, ab_odd) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
                let (cd, cd_odd) = (_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xdd>(c, d));
                _mm512_storeu_si512(to.add((i) * 16).cast(), _mm512_shuffle_i32x4::<0x88>(ab, cd));
                _mm512_storeu_si512(to.add((8 + i) * 16).cast(), _mm512_shuffle_i32x4::<0xdd>(ab, cd));
                _mm512_storeu_si512(
                    to.add((4 + i) * 16).cast(),
                    _mm512_shuffle_i32x4::<0x88>(ab_odd, cd_odd),
                );
                _mm512_storeu_si512(
                    to.add((12 + i) * 16).cast(),
                    _mm512_shuffle_i32x4::<0xdd>(ab_odd, cd_odd),
                );
            }
        })
    }
}

impl<L: HasBf16> SimdBf16 for Zmm<L> {
    #[inline(always)]
    fn dot_bf16(self, c: __m512, a: __m512i, b: __m512i) -> __m512 {
        // The types differ in name only.
        lanes!(_mm512_dpbf16_ps(
            c,
            std::mem::transmute::<__m512i, __m512bh>(a),
            std::mem::transmute::<__m512i, __m512bh>(b)
        ))
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u16) -> __m512 {
        let wide = lanes!(_mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast())));
        lanes!(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)))
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16, a: __m512) {
        lanes!({
            let half = std::mem::transmute::<std::arch::x86_64::__m256bh, __m256i>(_mm512_cvtneps_pbh(a));
            _mm256_storeu_si256(to.cast(), half);
        })
    }
    #[inline(always)]
    unsafe fn pair_bf16(self, lower: *const u16, upper: Option<*const u16>) -> __m512i {
        let lower = lanes!(_mm512_cvtepu16_epi32(_mm256_loadu_si256(lower.cast())));
        match upper {
            None => lower,
            Some(upper) => {
                let upper = lanes!(_mm512_cvtepu16_epi32(_mm256_loadu_si256(upper.cast())));
                lanes!(_mm512_or_si512(lower, _mm512_slli_epi32::<16>(upper)))
            }
        }
    }
}
