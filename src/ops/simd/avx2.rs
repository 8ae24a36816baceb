//! AVX2 with FMA: Intel from Haswell, AMD from Zen.

use super::tiles::NoTiles;
use super::{Kernel, Simd};
use std::arch::x86_64::{
    __m256, __m256i, _MM_HINT_T1, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_max_ps, _mm_max_ss,
    _mm_movehdup_ps, _mm_movehl_ps, _mm_packus_epi16, _mm_prefetch, _mm_storel_epi64, _mm_storeu_si128,
    _mm_unpacklo_epi64, _mm256_add_epi32, _mm256_add_ps, _mm256_and_ps, _mm256_blendv_ps,
    _mm256_castps_si256, _mm256_castps256_ps128, _mm256_castsi256_ps, _mm256_castsi256_si128,
    _mm256_cmpgt_epi32, _mm256_cvtepi32_ps, _mm256_cvtps_epi32, _mm256_div_ps, _mm256_dpbusd_avx_epi32,
    _mm256_extractf128_ps, _mm256_extracti128_si256, _mm256_floor_ps, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_loadu_si256, _mm256_madd_epi16, _mm256_max_ps, _mm256_min_ps, _mm256_mul_ps, _mm256_packs_epi32,
    _mm256_permute2x128_si256, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setr_epi32, _mm256_setzero_ps,
    _mm256_setzero_si256, _mm256_slli_epi32, _mm256_storeu_ps, _mm256_storeu_si256, _mm256_sub_ps,
    _mm256_unpackhi_epi32, _mm256_unpackhi_epi64, _mm256_unpacklo_epi32, _mm256_unpacklo_epi64,
};
use std::marker::PhantomData;

/// Each `unsafe` below is an instruction that `self` proves, or the caller's promise about a pointer.
macro_rules! lanes {
    ($expression:expr) => {
        // SAFETY: `Ymm` exists only where `detect` found the instructions; what is behind a
        // pointer is promised by who calls, as `Simd` demands.
        unsafe { $expression }
    };
}

/// What a processor with AVX2 and FMA has beyond these.
pub trait Level: Copy + Send + Sync + 'static {
    /// Whether this machine is such a processor.
    fn is_here() -> bool;
    /// Runs a kernel compiled for it.
    ///
    /// # Safety
    /// [`Level::is_here`].
    unsafe fn launch<K: Kernel<Ymm<Self>>>(simd: Ymm<Self>, kernel: K) -> K::Output;
    /// [`Simd::BYTES_TO_WORD`].
    const BYTES_TO_WORD: usize;
    /// [`Simd::dot_bytes`].
    ///
    /// # Safety
    /// [`Level::is_here`].
    unsafe fn dot_bytes(c: __m256i, a: __m256i, b: __m256i) -> __m256i;
}

/// Nothing.
#[derive(Clone, Copy, Debug)]
pub struct Plain;

impl Level for Plain {
    // `maddubs` saturates; the products of 16-bit values do not.
    const BYTES_TO_WORD: usize = 2;
    fn is_here() -> bool {
        is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
    }
    #[inline(always)]
    unsafe fn launch<K: Kernel<Ymm<Self>>>(simd: Ymm<Self>, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma")]
        fn with<K: Kernel<Avx2>>(simd: Avx2, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: the caller promises the level, which has these features.
        unsafe { with(simd, kernel) }
    }
    #[inline(always)]
    unsafe fn dot_bytes(c: __m256i, a: __m256i, b: __m256i) -> __m256i {
        lanes!(_mm256_add_epi32(c, _mm256_madd_epi16(a, b)))
    }
}

/// Byte dot products (AVX-VNNI): Intel's clients from Alder Lake.
#[derive(Clone, Copy, Debug)]
pub struct WithVnni;

impl Level for WithVnni {
    const BYTES_TO_WORD: usize = 4;
    fn is_here() -> bool {
        Plain::is_here() && is_x86_feature_detected!("avxvnni")
    }
    #[inline(always)]
    unsafe fn launch<K: Kernel<Ymm<Self>>>(simd: Ymm<Self>, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,avxvnni")]
        fn with<K: Kernel<AvxVnni>>(simd: AvxVnni, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: the caller promises the level, which has these features.
        unsafe { with(simd, kernel) }
    }
    #[inline(always)]
    unsafe fn dot_bytes(c: __m256i, a: __m256i, b: __m256i) -> __m256i {
        lanes!(_mm256_dpbusd_avx_epi32(c, a, b))
    }
}

/// Eight lanes. Its existence proves the instructions of its level.
#[derive(Clone, Copy, Debug)]
pub struct Ymm<L>(PhantomData<L>);

/// AVX2 with FMA.
pub type Avx2 = Ymm<Plain>;
/// The same with VNNI on 256 bits.
pub type AvxVnni = Ymm<WithVnni>;

impl<L: Level> Ymm<L> {
    /// On a processor that has all of it.
    pub fn detect() -> Option<Self> {
        L::is_here().then_some(Self(PhantomData))
    }
}

impl<L: Level> Simd for Ymm<L> {
    type Tiles = NoTiles;
    type V = __m256;
    type W = __m256i;
    type Broadcast = __m256i;
    const LANES: usize = 8;
    const BYTES_TO_WORD: usize = L::BYTES_TO_WORD;
    const ROWS: usize = 6;

    #[inline(always)]
    fn launch<K: Kernel<Self>>(self, kernel: K) -> K::Output {
        lanes!(L::launch(self, kernel))
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m256 {
        lanes!(_mm256_set1_ps(value))
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        lanes!(_mm256_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        lanes!(_mm256_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        lanes!(_mm256_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        lanes!(_mm256_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        lanes!(_mm256_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        lanes!(_mm256_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        lanes!(_mm256_min_ps(a, b))
    }
    #[inline(always)]
    fn abs(self, a: __m256) -> __m256 {
        lanes!(_mm256_and_ps(a, _mm256_castsi256_ps(_mm256_set1_epi32(i32::MAX))))
    }
    #[inline(always)]
    fn fraction(self, a: __m256) -> __m256 {
        lanes!(_mm256_sub_ps(a, _mm256_floor_ps(a)))
    }
    #[inline(always)]
    fn scale(self, a: __m256, exponent: __m256) -> __m256 {
        lanes!({
            let exponent = _mm256_slli_epi32::<23>(_mm256_cvtps_epi32(_mm256_floor_ps(exponent)));
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), exponent))
        })
    }
    #[inline(always)]
    fn sum(self, a: __m256) -> f32 {
        lanes!({
            let four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        })
    }
    #[inline(always)]
    fn largest(self, a: __m256) -> f32 {
        lanes!({
            let four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        })
    }
    #[inline(always)]
    fn first(self, count: usize, a: __m256, other: __m256) -> __m256 {
        lanes!({
            let number = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let taken = _mm256_cmpgt_epi32(_mm256_set1_epi32(count.min(8) as i32), number);
            _mm256_blendv_ps(other, a, _mm256_castsi256_ps(taken))
        })
    }

    #[inline(always)]
    fn splat_word(self, word: u32) -> __m256i {
        lanes!(_mm256_set1_epi32(word.cast_signed()))
    }
    #[inline(always)]
    fn as_floats(self, a: __m256i) -> __m256 {
        lanes!(_mm256_castsi256_ps(a))
    }
    #[inline(always)]
    fn as_words(self, a: __m256) -> __m256i {
        lanes!(_mm256_castps_si256(a))
    }
    #[inline(always)]
    fn to_floats(self, a: __m256i) -> __m256 {
        lanes!(_mm256_cvtepi32_ps(a))
    }
    #[inline(always)]
    fn broadcast(self, word: u32) -> __m256i {
        self.splat_word(word)
    }
    #[inline(always)]
    fn dot_f32(self, c: __m256, a: __m256i, b: __m256i) -> __m256 {
        self.fma(self.as_floats(a), self.as_floats(b), c)
    }
    #[inline(always)]
    fn dot_bytes(self, c: __m256i, a: __m256i, b: __m256i) -> __m256i {
        lanes!(L::dot_bytes(c, a, b))
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m256 {
        lanes!(_mm256_loadu_ps(from))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, a: __m256) {
        lanes!(_mm256_storeu_ps(to, a))
    }
    #[inline(always)]
    unsafe fn load_words(self, from: *const u32) -> __m256i {
        lanes!(_mm256_loadu_si256(from.cast()))
    }
    #[inline(always)]
    unsafe fn store_bytes(self, row: *mut u32, at: usize, a: __m256) {
        // Saturating both times; each half of the register packs on its own, so they are joined first.
        lanes!({
            let capped = _mm256_min_ps(_mm256_max_ps(a, _mm256_setzero_ps()), _mm256_set1_ps(255.0));
            let words = _mm256_cvtps_epi32(capped);
            let shorts = _mm256_packs_epi32(words, words);
            let (low, high) = (_mm256_castsi256_si128(shorts), _mm256_extracti128_si256::<1>(shorts));
            let all = _mm_unpacklo_epi64(low, high);
            let to = row.add(at / L::BYTES_TO_WORD).cast();
            if L::BYTES_TO_WORD == 2 {
                _mm_storeu_si128(to, all);
            } else {
                _mm_storel_epi64(to, _mm_packus_epi16(all, low));
            }
        })
    }
    #[inline(always)]
    fn prefetch(self, address: *const u32) {
        lanes!(_mm_prefetch::<_MM_HINT_T1>(address.cast()));
    }
    #[inline(always)]
    unsafe fn transpose(self, from: *const u32, stride: usize, rows: usize, to: *mut u32) {
        lanes!({
            let mut r = [_mm256_setzero_si256(); 8];
            for (i, row) in r.iter_mut().enumerate().take(rows) {
                *row = _mm256_loadu_si256(from.add(i * stride).cast());
            }
            let mut t = r;
            for i in 0..4 {
                t[2 * i] = _mm256_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
                t[2 * i + 1] = _mm256_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
            }
            for i in 0..2 {
                r[4 * i] = _mm256_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
                r[4 * i + 1] = _mm256_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
                r[4 * i + 2] = _mm256_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
                r[4 * i + 3] = _mm256_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
            }
            for i in 0..4 {
                _mm256_storeu_si256(
                    to.add((i) * 8).cast(),
                    _mm256_permute2x128_si256::<0x20>(r[i], r[4 + i]),
                );
                _mm256_storeu_si256(
                    to.add((4 + i) * 8).cast(),
                    _mm256_permute2x128_si256::<0x31>(r[i], r[4 + i]),
                );
            }
        })
    }
}
