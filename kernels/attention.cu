// Softmax(Q K^T) V within each sequence, a block a tile of 64 queries of one head (Dao 2023, FlashAttention-2):
// keys and values come in tiles of 64 while the last is worked on, scores stay in registers, nothing is padded to
// another sequence's length. Queries are scaled by log2(e) / sqrt(d) before.
//
// `qkv: [tokens, 3, heads, D]`, `context: [tokens, heads, D]`; D is 32 or 64. Four warps have 16 queries each.

constexpr u32 TILE = 64;
constexpr u32 ATTENTION_THREADS = 128;

template <class T, int D> struct KeyTile {
    // 16 bytes more than a row has, so that the eight rows of a matrix lie in different banks.
    static constexpr u32 STRIDE = D + 8;
    T* keys;
    T* values;

    // Starts to copy the keys and values from row `first` of a sequence on, zeros after its end.
    INLINE void fetch(const T* key_rows, const T* value_rows, size_t stride, u32 first, u32 length) const {
        constexpr u32 PIECES = D / 8;
#pragma unroll
        for (u32 piece = threadIdx.x; piece < TILE * PIECES; piece += ATTENTION_THREADS) {
            const u32 row = piece / PIECES, column = piece % PIECES * 8;
            const bool is_past = first + row >= length;
            const size_t from = (is_past ? 0 : first + row) * stride + column;
            copy_async(keys + row * STRIDE + column, key_rows + from, is_past);
            copy_async(values + row * STRIDE + column, value_rows + from, is_past);
        }
    }
};

// What a warp knows of its 16 queries; a lane has rows g and g + 8 of them, g = lane / 4.
template <class T, int D> struct Queries {
    u32 q[D / 16][4];
    float context[D / 8][4];
    float largest[2], sum[2];

    INLINE void load(const T* rows, size_t stride, u32 first, u32 length) {
        const u32 lane = threadIdx.x % WARP, row = first + lane / 4, column = lane % 4 * 2;
        auto word = [&](u32 row, u32 column) {
            return row < length ? *reinterpret_cast<const u32*>(rows + row * stride + column) : 0u;
        };
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            q[k][0] = word(row, k * 16 + column);
            q[k][1] = word(row + 8, k * 16 + column);
            q[k][2] = word(row, k * 16 + column + 8);
            q[k][3] = word(row + 8, k * 16 + column + 8);
        }
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) context[n][i] = 0.f;
        largest[0] = largest[1] = LOWEST;
        sum[0] = sum[1] = 0.f;
    }

    // Takes in a tile of keys, of which `left`, at least one, are there.
    INLINE void attend(const KeyTile<T, D>& tile, u32 left) {
        const u32 lane = threadIdx.x % WARP;
        float scores[TILE / 8][4];
#pragma unroll
        for (int n = 0; n < TILE / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) scores[n][i] = 0.f;
            if (n * 8 >= left) continue;
#pragma unroll
            for (int k = 0; k < D / 32; k++) {
                u32 keys[4];
                load_matrices(keys, tile.keys + (n * 8 + lane % 8) * tile.STRIDE + k * 32 + lane / 8 * 8);
                mma(T{}, scores[n], q[2 * k], keys[0], keys[1]);
                mma(T{}, scores[n], q[2 * k + 1], keys[2], keys[3]);
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
                    if (n * 8 + lane % 4 * 2 + i >= left) score = LOWEST;
                    now = fmaxf(now, score);
                }
            now = fmaxf(now, from_lane_xor(now, 1));
            now = fmaxf(now, from_lane_xor(now, 2));
            const float shrink = exp2_fast(largest[half] - now);
            largest[half] = now;
            sum[half] *= shrink;
#pragma unroll
            for (int n = 0; n < TILE / 8; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float& score = scores[n][2 * half + i];
                    score = exp2_fast(score - now);
                    sum[half] += score;
                }
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                context[n][2 * half] *= shrink;
                context[n][2 * half + 1] *= shrink;
            }
        }
#pragma unroll
        for (int k = 0; k < TILE / 16; k++) {
            if (k * 16 >= left) continue;
            // Two tiles of scores are, lane by lane, a left operand of 16 columns.
            const float(&a)[4] = scores[2 * k];
            const float(&b)[4] = scores[2 * k + 1];
            const u32 weights[4] = {pack(T{}, a[0], a[1]), pack(T{}, a[2], a[3]), pack(T{}, b[0], b[1]),
                                    pack(T{}, b[2], b[3])};
#pragma unroll
            for (int n = 0; n < D / 16; n++) {
                u32 values[4];
                const u32 row = k * 16 + lane % 16;
                load_matrices_transposed(values, tile.values + row * tile.STRIDE + n * 16 + lane / 16 * 8);
                mma(T{}, context[2 * n], weights, values[0], values[1]);
                mma(T{}, context[2 * n + 1], weights, values[2], values[3]);
            }
        }
    }

    INLINE void store(T* rows, size_t stride, u32 first, u32 length) {
        const u32 lane = threadIdx.x % WARP;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float total = sum[half];
            total += from_lane_xor(total, 1);
            total += from_lane_xor(total, 2);
            const u32 row = first + lane / 4 + 8 * half;
            if (row >= length) continue;
            const float inverse = 1.f / total;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                const u32 pair = pack(T{}, context[n][2 * half] * inverse, context[n][2 * half + 1] * inverse);
                *reinterpret_cast<u32*>(rows + row * stride + n * 8 + lane % 4 * 2) = pair;
            }
        }
    }
};

template <class T, int D>
INLINE void attention(const Batch& batch, const T* qkv, T* context, u32 heads) {
    using Tile = KeyTile<T, D>;
    SHARED(T, memory, 4 * TILE * Tile::STRIDE);
    const u32 head = blockIdx.y, width = heads * D, stride = 3 * width;
    auto stage = [&](u32 number) {
        T* start = memory + number % 2 * 2 * TILE * Tile::STRIDE;
        return Tile{start, start + TILE * Tile::STRIDE};
    };
    for (u32 index = blockIdx.x; index < batch.tiles(); index += gridDim.x) {
        const u32 sequence = batch.tile_list()[2 * index], first = batch.tile_list()[2 * index + 1];
        const u32 start = batch.starts()[sequence], length = batch.starts()[sequence + 1] - start;
        const T* rows = qkv + size_t(start) * stride + head * D;
        const u32 own = first + threadIdx.x / WARP * 16;
        const u32 key_tiles = (length + TILE - 1) / TILE;
        Queries<T, D> queries;
        stage(0).fetch(rows + width, rows + 2 * width, stride, 0, length);
        copies_commit();
        queries.load(rows, stride, own, length);
        for (u32 number = 0; number < key_tiles; number++) {
            // All have left the tile that is fetched next, and this one has come for all.
            if (number + 1 < key_tiles)
                stage(number + 1).fetch(rows + width, rows + 2 * width, stride, (number + 1) * TILE, length);
            copies_commit();
            copies_wait<1>();
            block_barrier();
            if (own < length) queries.attend(stage(number), length - number * TILE);
            block_barrier();
        }
        if (own < length) queries.store(context + size_t(start) * width + head * D, width, own, length);
    }
}

#define ATTENTION(T, D)                                                                                       \
    KERNEL attention_##D##_##T(const u32* batch, u32 tokens_max, u32 sequences_max, const T* qkv, T* context, \
                               u32 heads) {                                                                   \
        attention<T, D>(Batch{batch, tokens_max, sequences_max}, qkv, context, heads);                        \
    }
ATTENTION(f16, 32)
ATTENTION(f16, 64)
ATTENTION(bf16, 32)
ATTENTION(bf16, 64)
