// Softmax(Q K^T) V within each sequence (Dao 2023, FlashAttention-2). A block processes a tile of 64 queries, 16 per warp.
// It loops over its heads, and for each head over the sequence's keys in tiles of 64. One step is one head and one tile of
// keys; the data of the next step is copied while the current step computes. Scores stay in registers, and no sequence is
// padded to the length of another. The host has scaled the queries by log2(e) / sqrt(d).
//
// There are two kinds of kernels: in `attention` a query sees all keys of its sequence, in `attention_banded` those of a
// band. Of a band, tiles of keys that no query of the block sees are not loaded, and a warp skips the keys that none of its
// queries sees.
//
// `qkv: [tokens, heads + 2 kv_heads, D]`: queries, keys, values; `context: [tokens, heads, D]`. D is 32, 64, 96 or 128.
// heads / kv_heads consecutive heads of queries read one head of keys and values.

constexpr u32 TILE = 64;
constexpr u32 ATTENTION_THREADS = 128;
constexpr u32 QUERIES = 16;
// Heads that are wider need more shared memory than a block has without opting in.
constexpr u32 STATIC_HEAD_MAX = 64;
// Below every score of a key that is seen, and above LOWEST, so that the others weigh exactly zero.
constexpr float FLOOR = -1e30f;

// The keys that a query sees: from `before` places before it to `after` places behind it.
struct Band { int before, after; };
// How many keys of a tile a warp's queries see: all; up to the sequence's end; or some, not all the same.
enum Seen { WHOLE, TO_END, BANDED };

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
        largest[0] = largest[1] = FLOOR;
        total[0] = total[1] = 0.f;
    }

    // Accumulates a tile of keys and values. The columns from `left` on do not exist or are seen by none of the warp's
    // queries, at least one column before; `place` is the column with the place of the warp's first query.
    template <Seen SEEN> INLINE void attend(const T* keys, const T* values, int left, int place, const Band& band) {
        const int lane = threadIdx.x % WARP;
        // Whether none of the warp's queries sees any of `count` columns from `column` on.
        auto is_unseen = [&](int column, int count) {
            return (SEEN != WHOLE && column >= left) || (SEEN == BANDED && column + count + band.before <= place);
        };
        float scores[TILE / 8][4];
#pragma unroll
        for (int n = 0; n < TILE / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) scores[n][i] = 0.f;
            if (is_unseen(n * 8, 8)) continue;
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
            const int own = place + lane / 4 + 8 * half;
            float now = largest[half];
#pragma unroll
            for (int n = 0; n < TILE / 8; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float& score = scores[n][2 * half + i];
                    const int column = n * 8 + lane % 4 * 2 + i;
                    if (SEEN != WHOLE && column >= left) score = LOWEST;
                    if (SEEN == BANDED && (column + band.before < own || column > own + band.after)) score = LOWEST;
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
                    if (is_unseen(n * 8, 8)) continue;
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
            if (is_unseen(k * 16, 16)) continue;
            // In each lane two 8-column score tiles already have the layout of a left operand with 16 columns. One of them
            // may be unseen.
            const bool has_first = SEEN != BANDED || !is_unseen(k * 16, 8), has_second = !is_unseen(k * 16 + 8, 8);
            const float(&a)[4] = scores[2 * k];
            const float(&b)[4] = scores[2 * k + 1];
            const u32 weights[4] = {has_first ? pack(T{}, a[0], a[1]) : 0, has_first ? pack(T{}, a[2], a[3]) : 0,
                                    has_second ? pack(T{}, b[0], b[1]) : 0, has_second ? pack(T{}, b[2], b[3]) : 0};
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

// The heads of queries, and of keys and values.
struct HeadCounts { u32 queries, keys; };

// Processes a tile of queries for the heads `head..end`. `memory` holds five tiles: queries, and keys and values of two
// steps.
template <class T, int D, bool IS_BANDED>
INLINE void attend_tile(const Batch::Tile& tile, const T* qkv, T* context, const Quantised& quantised,
                        const HeadCounts& heads, const Band& band, u32 head, u32 end, T* memory) {
    using Rows = HeadRows<T, D>;
    constexpr u32 TILE_VALUES = TILE * Rows::STRIDE;
    const u32 warp = threadIdx.x / WARP, own = tile.row + warp * QUERIES, width = heads.queries * D;
    const u32 group = heads.queries / heads.keys;
    const size_t stride = width + 2 * heads.keys * D;
    // The keys that queries of this tile see.
    const u32 seen_start = IS_BANDED ? tile.row - min(tile.row, u32(band.before)) : 0;
    const u32 seen_end = IS_BANDED ? min(tile.length, tile.row + TILE + band.after) : tile.length;
    T* own_queries = memory + warp * QUERIES * Rows::STRIDE;
    auto keys_of = [&](u32 step) { return memory + (1 + step % 2 * 2) * TILE_VALUES; };
    auto fetch = [&](u32 step, u32 head, u32 first) {
        const T* rows = qkv + tile.start * stride;
        // Each warp overwrites only its own queries, whose previous values it has already read.
        if (first == seen_start) Rows::template fetch<QUERIES, WARP>(own_queries, rows + head * D, stride, own, tile.length);
        const T* key_rows = rows + width + head / group * D;
        T* keys = keys_of(step);
        Rows::template fetch<TILE, ATTENTION_THREADS>(keys, key_rows, stride, first, tile.length);
        Rows::template fetch<TILE, ATTENTION_THREADS>(keys + TILE_VALUES, key_rows + heads.keys * D, stride, first, tile.length);
        copies_commit();
    };
    Queries<T, D> queries;
    u32 first = seen_start;
    if (head < end) fetch(0, head, first);
    for (u32 step = 0; head < end; step++) {
        copies_wait<0>();
        // After the barrier every thread sees this step's rows, and none still reads those of the previous step.
        block_barrier();
        if (first == seen_start) {
            queries.load(own_queries);
            warp_barrier();
        }
        const bool is_last = first + TILE >= seen_end;
        const u32 next_head = head + is_last, next_first = is_last ? seen_start : first + TILE;
        if (next_head < end) fetch(step + 1, next_head, next_first);
        if (own < tile.length) {
            const T *keys = keys_of(step), *values = keys + TILE_VALUES;
            const int place = int(own) - int(first), exist = int(tile.length) - int(first);
            if constexpr (IS_BANDED) {
                const int last = QUERIES - 1, columns = TILE, left = min(exist, place + last + band.after + 1);
                const bool is_whole = left >= columns && place + last <= band.before && columns - 1 <= place + band.after;
                if (is_whole) queries.template attend<WHOLE>(keys, values, left, place, band);
                else if (left > 0 && place < columns + band.before)
                    queries.template attend<BANDED>(keys, values, left, place, band);
            } else {
                if (is_last) queries.template attend<TO_END>(keys, values, exist, place, band);
                else queries.template attend<WHOLE>(keys, values, exist, place, band);
            }
            if (is_last)
                queries.store(context, quantised, tile.start * size_t(width) + head * D, width, own, tile.length);
        }
        head = next_head;
        first = next_first;
    }
}

template <class T, int D, bool IS_BANDED>
INLINE void attention(const Batch& batch, const T* qkv, T* context, const Quantised& quantised, const HeadCounts& heads,
                      const Band& band) {
    constexpr u32 STATIC_VALUES = D > STATIC_HEAD_MAX ? 8 : 5 * TILE * HeadRows<T, D>::STRIDE;
    SHARED(T, own_memory, STATIC_VALUES);
    SHARED_DYNAMIC(more_memory);
    T* memory = D > STATIC_HEAD_MAX ? reinterpret_cast<T*>(more_memory) : own_memory;
    const u32 share = (heads.queries + gridDim.y - 1) / gridDim.y, head = blockIdx.y * share;
    const u32 end = min(heads.queries, head + share);
    // The grid is sized for long sequences; blocks loop over the extra tiles of short ones.
    for (u32 index = blockIdx.x; index < batch.tiles(); index += gridDim.x) {
        attend_tile<T, D, IS_BANDED>(batch.tile(index), qkv, context, quantised, heads, band, head, end, memory);
        block_barrier();
    }
}

#define ATTENTION(T, D)                                                                                               \
    KERNEL(attention_##D##_##T, (const u32* batch, u32 tokens_max, u32 sequences_max, const T* qkv, T* context,       \
                                 u32 heads, u32 kv_heads, e4m3* quantised, const float* factor)) {                    \
        const Batch in{batch, tokens_max, sequences_max};                                                             \
        attention<T, D, false>(in, qkv, context, Quantised{quantised, factor}, HeadCounts{heads, kv_heads}, Band{});  \
    }                                                                                                                 \
    KERNEL(attention_banded_##D##_##T, (const u32* batch, u32 tokens_max, u32 sequences_max, const T* qkv,            \
                                        T* context, u32 heads, u32 kv_heads, u32 before, u32 after)) {                \
        const Batch in{batch, tokens_max, sequences_max};                                                             \
        const Band band{int(before), int(after)};                                                                     \
        attention<T, D, true>(in, qkv, context, Quantised{}, HeadCounts{heads, kv_heads}, band);                      \
    }
ATTENTION(f16, 32)
ATTENTION(f16, 64)
ATTENTION(f16, 96)
ATTENTION(f16, 128)
ATTENTION(bf16, 32)
ATTENTION(bf16, 64)
ATTENTION(bf16, 96)
ATTENTION(bf16, 128)
