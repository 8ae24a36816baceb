// Softmax(Q K^T) V within each sequence (Dao 2023, FlashAttention-2). A block processes a tile of 64 queries, 16 per warp.
// It loops over its heads, and for each head over the sequence's keys in tiles of 64. One step is one head and one tile of
// keys; the data of the next step is copied while the current step computes. Scores stay in registers, and no sequence is
// padded to the length of another. The host has scaled the queries by log2(e) / sqrt(d).
//
// `qkv: [tokens, 3, heads, D]`, `context: [tokens, heads, D]`; D is 32 or 64.

constexpr u32 TILE = 64;
constexpr u32 ATTENTION_THREADS = 128;
constexpr u32 QUERIES = 16;

// Rows of a head in shared memory.
template <class T, int D> struct HeadRows {
    // Padded by 16 bytes, so that the eight rows of a matrix lie in different banks.
    static constexpr u32 STRIDE = D + 8;

    // Starts to copy COUNT rows of a sequence from row `first` on, with zeros past its end; the work is divided among THREADS.
    template <u32 COUNT, u32 THREADS>
    static INLINE void fetch(T* to, const T* rows, size_t stride, u32 first, u32 length) {
        constexpr u32 PIECES = D / 8;
#pragma unroll
        for (u32 piece = threadIdx.x % THREADS; piece < COUNT * PIECES; piece += THREADS) {
            const u32 row = piece / PIECES, column = piece % PIECES * 8;
            const bool is_past = first + row >= length;
            copy_async(to + row * STRIDE + column, rows + (is_past ? 0 : first + row) * stride + column, is_past);
        }
    }
};

// A warp's state for 16 queries of one head; a lane holds rows g and g + 8, g = lane / 4.
template <class T, int D> struct Queries {
    static constexpr u32 STRIDE = HeadRows<T, D>::STRIDE;
    u32 q[D / 16][4];
    float sums[D / 8][4];
    float largest[2], total[2];

    INLINE void load(const T* rows) {
        const u32 lane = threadIdx.x % WARP;
#pragma unroll
        for (int k = 0; k < D / 16; k++) load_matrices(q[k], rows + lane % 16 * STRIDE + k * 16 + lane / 16 * 8);
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) sums[n][i] = 0.f;
        largest[0] = largest[1] = LOWEST;
        total[0] = total[1] = 0.f;
    }

    // Accumulates a tile of keys and values. `left` of them exist, at least one; all TILE unless IS_LAST.
    template <bool IS_LAST> INLINE void attend(const T* keys, const T* values, u32 left) {
        const u32 lane = threadIdx.x % WARP;
        float scores[TILE / 8][4];
#pragma unroll
        for (int n = 0; n < TILE / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) scores[n][i] = 0.f;
            if (IS_LAST && n * 8 >= left) continue;
#pragma unroll
            for (int k = 0; k < D / 32; k++) {
                u32 key[4];
                load_matrices(key, keys + (n * 8 + lane % 8) * STRIDE + k * 32 + lane / 8 * 8);
                mma(T{}, scores[n], q[2 * k], key[0], key[1]);
                mma(T{}, scores[n], q[2 * k + 1], key[2], key[3]);
            }
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float now = largest[half];
#pragma unroll
            for (int n = 0; n < TILE / 8; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float& score = scores[n][2 * half + i];
                    if (IS_LAST && n * 8 + lane % 4 * 2 + i >= left) score = LOWEST;
                    now = fmaxf(now, score);
                }
            now = fmaxf(now, from_lane_xor(now, 1));
            now = fmaxf(now, from_lane_xor(now, 2));
            const float shrink = exp2_fast(largest[half] - now);
            largest[half] = now;
            total[half] *= shrink;
#pragma unroll
            for (int n = 0; n < TILE / 8; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float& score = scores[n][2 * half + i];
                    if (IS_LAST && n * 8 >= left) continue;
                    score = exp2_fast(score - now);
                    total[half] += score;
                }
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                sums[n][2 * half] *= shrink;
                sums[n][2 * half + 1] *= shrink;
            }
        }
#pragma unroll
        for (int k = 0; k < TILE / 16; k++) {
            if (IS_LAST && k * 16 >= left) continue;
            // In each lane two 8-column score tiles already have the layout of a left operand with 16 columns. The second
            // tile is absent past the last key.
            const bool is_half = IS_LAST && k * 16 + 8 >= left;
            const float(&a)[4] = scores[2 * k];
            const float(&b)[4] = scores[2 * k + 1];
            const u32 weights[4] = {pack(T{}, a[0], a[1]), pack(T{}, a[2], a[3]),
                                    is_half ? 0 : pack(T{}, b[0], b[1]), is_half ? 0 : pack(T{}, b[2], b[3])};
#pragma unroll
            for (int n = 0; n < D / 16; n++) {
                u32 value[4];
                load_matrices_transposed(value, values + (k * 16 + lane % 16) * STRIDE + n * 16 + lane / 16 * 8);
                mma(T{}, sums[2 * n], weights, value[0], value[1]);
                mma(T{}, sums[2 * n + 1], weights, value[2], value[3]);
            }
        }
    }

    // Writes rows from `first` up to the sequence's end, for the head whose output begins at `place`.
    INLINE void store(T* context, const Quantised& quantised, size_t place, size_t stride, u32 first, u32 length) {
        const u32 lane = threadIdx.x % WARP;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float all = total[half];
            all += from_lane_xor(all, 1);
            all += from_lane_xor(all, 2);
            const u32 row = first + lane / 4 + 8 * half;
            if (row >= length) continue;
            const float inverse = 1.f / all;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                const float low = sums[n][2 * half] * inverse, high = sums[n][2 * half + 1] * inverse;
                const size_t own = place + row * stride + n * 8 + lane % 4 * 2;
                if (quantised) quantised.store_pair(own, low, high);
                else *reinterpret_cast<u32*>(context + own) = pack(T{}, low, high);
            }
        }
    }
};

// Processes a tile of queries for the heads `head..end`. `memory` holds five tiles: queries, and keys and values of two
// steps.
template <class T, int D>
INLINE void attend_tile(const Batch::Tile& tile, const T* qkv, T* context, const Quantised& quantised, u32 heads, u32 head,
                        u32 end, T* memory) {
    using Rows = HeadRows<T, D>;
    constexpr u32 TILE_VALUES = TILE * Rows::STRIDE;
    const u32 warp = threadIdx.x / WARP, own = tile.row + warp * QUERIES, width = heads * D;
    const size_t stride = 3 * width;
    T* own_queries = memory + warp * QUERIES * Rows::STRIDE;
    auto keys_of = [&](u32 step) { return memory + (1 + step % 2 * 2) * TILE_VALUES; };
    auto fetch = [&](u32 step, u32 head, u32 first) {
        const T* rows = qkv + tile.start * stride + head * D;
        // Each warp overwrites only its own queries, whose previous values it has already read.
        if (first == 0) Rows::template fetch<QUERIES, WARP>(own_queries, rows, stride, own, tile.length);
        T* keys = keys_of(step);
        Rows::template fetch<TILE, ATTENTION_THREADS>(keys, rows + width, stride, first, tile.length);
        Rows::template fetch<TILE, ATTENTION_THREADS>(keys + TILE_VALUES, rows + 2 * width, stride, first, tile.length);
        copies_commit();
    };
    Queries<T, D> queries;
    u32 first = 0;
    if (head < end) fetch(0, head, first);
    for (u32 step = 0; head < end; step++) {
        copies_wait<0>();
        // After the barrier every thread sees this step's rows, and none still reads those of the previous step.
        block_barrier();
        if (first == 0) {
            queries.load(own_queries);
            warp_barrier();
        }
        const bool is_last = first + TILE >= tile.length;
        const u32 next_head = head + is_last, next_first = is_last ? 0 : first + TILE;
        if (next_head < end) fetch(step + 1, next_head, next_first);
        if (own < tile.length) {
            const T* keys = keys_of(step);
            if (is_last) {
                queries.template attend<true>(keys, keys + TILE_VALUES, tile.length - first);
                queries.store(context, quantised, tile.start * size_t(width) + head * D, width, own, tile.length);
            } else {
                queries.template attend<false>(keys, keys + TILE_VALUES, TILE);
            }
        }
        head = next_head;
        first = next_first;
    }
}

template <class T, int D>
INLINE void attention(const Batch& batch, const T* qkv, T* context, const Quantised& quantised, u32 heads) {
    SHARED(T, memory, 5 * TILE * (HeadRows<T, D>::STRIDE));
    const u32 share = (heads + gridDim.y - 1) / gridDim.y, head = blockIdx.y * share, end = min(heads, head + share);
    // The grid is sized for long sequences; blocks loop over the extra tiles of short ones.
    for (u32 index = blockIdx.x; index < batch.tiles(); index += gridDim.x) {
        attend_tile<T, D>(batch.tile(index), qkv, context, quantised, heads, head, end, memory);
        block_barrier();
    }
}

#define ATTENTION(T, D)                                                                                         \
    KERNEL(attention_##D##_##T, (const u32* batch, u32 tokens_max, u32 sequences_max, const T* qkv, T* context, \
                                 u32 heads, e4m3* quantised, const float* factor)) {                            \
        const Batch in{batch, tokens_max, sequences_max};                                                       \
        attention<T, D>(in, qkv, context, Quantised{quantised, factor}, heads);                                 \
    }
ATTENTION(f16, 32)
ATTENTION(f16, 64)
ATTENTION(bf16, 32)
ATTENTION(bf16, 64)
