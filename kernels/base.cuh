// The basis of all kernels: the types f16, bf16 and e4m3, tensor-core and copy instructions, and warp reductions.
//
// Includes no CUDA header, so that nvcc, NVRTC and (through shim.h) a C++ compiler read the same source.
// Instructions are from the PTX ISA 8.0 manual; all need sm_80 or later.
#pragma once

#ifdef PODIUM_SHIM
#include "shim.h"
#else
typedef unsigned int u32;
typedef unsigned short u16;
// Shared memory of a block; uninitialised when the block starts.
#define SHARED(T, name, count) __shared__ __align__(16) T name[count]
#define SHARED_DYNAMIC(name) extern __shared__ __align__(16) float name[]
// A kernel by its symbol: `KERNEL(gelu_f16, (parameters)) { body }`.
#define KERNEL(name, parameters) extern "C" __global__ void name parameters
#define INLINE __device__ __forceinline__
#endif

// IEEE binary16 and bfloat16.
struct f16 { u16 bits; };
struct bf16 { u16 bits; };
struct Pair { float low, high; };
// OCP 8-bit float: 4 exponent bits, 3 fraction bits, largest value 448, no infinity.
struct e4m3 { unsigned char bits; };

constexpr u32 WARP = 32;
constexpr float LOWEST = -3.402823466e38f;

#ifndef PODIUM_SHIM
INLINE float to_float(f16 x) { float y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits)); return y; }
INLINE float to_float(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }
INLINE void round_to(f16& y, float x) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); }
INLINE void round_to(bf16& y, float x) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); }
INLINE u32 pack(f16, float low, float high) {
    u32 y; asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low)); return y;
}
INLINE u32 pack(bf16, float low, float high) {
    u32 y; asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low)); return y;
}
// Packs two E4M3 values into 16 bits; values out of range saturate to 448. GPUs before sm_89 lack E4M3; fp8 is refused there.
INLINE u32 pack(e4m3, float low, float high) {
#if __CUDA_ARCH__ >= 890
    u16 y; asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(y) : "f"(high), "f"(low)); return y;
#else
    return 0;
#endif
}
// 2^x within 2 ulp; 0 for LOWEST.
INLINE float exp2_fast(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
INLINE float from_lane(float x, u32 lane) { return __shfl_sync(0xffffffffu, x, lane); }
INLINE float from_lane_xor(float x, u32 mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
INLINE void block_barrier() { __syncthreads(); }
INLINE void warp_barrier() { __syncwarp(); }

// d += a b, with a 16 x 16 and b 16 x 8. With g = lane / 4 and t = 2 (lane % 4), a lane holds
//   a: pairs of neighbouring columns at (row, column) (g, t), (g + 8, t), (g, t + 8), (g + 8, t + 8);
//   b: pairs of neighbouring rows at (t, g) and (t + 8, g);
//   d: values at (g, t), (g, t + 1), (g + 8, t), (g + 8, t + 1).
INLINE void mma(f16, float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
INLINE void mma(bf16, float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
INLINE u32 shared_address(const void* place) { return u32(__cvta_generic_to_shared(place)); }
// Loads four 8 x 8 matrices of 16-bit values from shared memory. Lane l passes the address of row l % 8 of matrix l / 8,
// and receives from each matrix row l / 4, columns 2 (l % 4) and 2 (l % 4) + 1. The second function transposes.
INLINE void load_matrices(u32 (&m)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
        : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3]) : "r"(shared_address(row)) : "memory");
}
INLINE void load_matrices_transposed(u32 (&m)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
        : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3]) : "r"(shared_address(row)) : "memory");
}
// Starts an asynchronous copy of 16 bytes into shared memory, or writes zeros if `clear`; both addresses are multiples of 16.
INLINE void copy_async(void* to, const void* from, bool clear) {
    u32 bytes = clear ? 0 : 16;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
        :: "r"(shared_address(to)), "l"(from), "r"(bytes) : "memory");
}
INLINE void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `pending` of this thread's copy groups, the latest ones, are still in flight.
template <int pending> INLINE void copies_wait() { asm volatile("cp.async.wait_group %0;" :: "n"(pending) : "memory"); }
#endif

template <class T> INLINE T rounded(float x) { T y; round_to(y, x); return y; }
template <class T> INLINE Pair unpack(u32 x) { return {to_float(T{u16(x)}), to_float(T{u16(x >> 16)})}; }

// Eight 16-bit values: one 16-byte load or store.
struct alignas(16) Eight { u32 words[4]; };
template <class T> INLINE void load_eight(float (&to)[8], const T* from) {
    const Eight eight = *reinterpret_cast<const Eight*>(from);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        Pair pair = unpack<T>(eight.words[i]);
        to[2 * i] = pair.low;
        to[2 * i + 1] = pair.high;
    }
}
// Loads eight floats; the address is a multiple of 16.
struct alignas(16) Four { float values[4]; };
INLINE void load_eight(float (&to)[8], const float* from) {
    const Four first = reinterpret_cast<const Four*>(from)[0], second = reinterpret_cast<const Four*>(from)[1];
#pragma unroll
    for (int i = 0; i < 4; i++) to[i] = first.values[i], to[i + 4] = second.values[i];
}
template <class T> INLINE void store_eight(T* to, const float (&from)[8]) {
    Eight eight;
#pragma unroll
    for (int i = 0; i < 4; i++) eight.words[i] = pack(T{}, from[2 * i], from[2 * i + 1]);
    *reinterpret_cast<Eight*>(to) = eight;
}

// An E4M3 output for a matrix product that reads E4M3. Values are multiplied by `factor` first, so that the largest one
// fits. `to` is null if there is no such output.
struct Quantised {
    e4m3* to;
    const float* factor;

    INLINE explicit operator bool() const { return to != nullptr; }
    // Stores eight values; `place` is a multiple of 8.
    INLINE void store(size_t place, const float (&x)[8]) const {
        struct alignas(8) Words { u32 low, high; } words;
        const float scale = *factor;
        words.low = pack(e4m3{}, x[0] * scale, x[1] * scale) | pack(e4m3{}, x[2] * scale, x[3] * scale) << 16;
        words.high = pack(e4m3{}, x[4] * scale, x[5] * scale) | pack(e4m3{}, x[6] * scale, x[7] * scale) << 16;
        *reinterpret_cast<Words*>(to + place) = words;
    }
    // Stores two values; `place` is even.
    INLINE void store_pair(size_t place, float low, float high) const {
        *reinterpret_cast<u16*>(to + place) = u16(pack(e4m3{}, low * *factor, high * *factor));
    }
};

INLINE float warp_sum(float x) {
#pragma unroll
    for (u32 mask = WARP / 2; mask > 0; mask /= 2) x += from_lane_xor(x, mask);
    return x;
}
INLINE float warp_max(float x) {
#pragma unroll
    for (u32 mask = WARP / 2; mask > 0; mask /= 2) x = fmaxf(x, from_lane_xor(x, mask));
    return x;
}

// A batch in device memory, written by `src/ops/cuda/words.rs`: a header with counts, then arrays whose offsets depend only
// on the bucket.
struct Batch {
    const u32* words;
    u32 tokens_max, sequences_max;

    INLINE u32 tokens() const { return words[0]; }
    INLINE u32 sequences() const { return words[1]; }
    INLINE u32 tiles() const { return words[2]; }
    // The first token of each sequence; the last entry is the number of tokens.
    INLINE const u32* starts() const { return words + 4; }
    // Token ids.
    INLINE const u32* ids() const { return starts() + sequences_max + 1; }
    // For each token its position in its sequence (lower 24 bits) and its type (upper 8 bits).
    INLINE const u32* places() const { return ids() + tokens_max; }
    // A tile of attention: the first token of its sequence, the tile's first row within it, and the sequence's length.
    struct Tile { u32 start, row, length; };
    INLINE Tile tile(u32 index) const {
        const u32* words = places() + tokens_max + 2 * index;
        return {words[0], words[1] & 0xffff, words[1] >> 16};
    }
};
