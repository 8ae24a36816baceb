// What a head reads of each sequence: the row of its first or of its last token, or the mean of all its rows. Rows have
// `stride` values, a multiple of 8.

constexpr u32 MEAN_THREADS = 256;
// Columns of a block of `mean_rows`: eight for each lane.
constexpr u32 MEAN_COLUMNS = 256;

// to[s] = rows[starts[s]], or rows[starts[s + 1] - 1] if IS_LAST; one warp per sequence.
template <bool IS_LAST, class T> INLINE void pick_rows(const Batch& batch, const T* rows, u32 stride, T* picked) {
    const u32 sequence = (blockIdx.x * blockDim.x + threadIdx.x) / WARP;
    if (sequence >= batch.sequences()) return;
    const u32 token = IS_LAST ? batch.starts()[sequence + 1] - 1 : batch.starts()[sequence];
    const T* from = rows + size_t(token) * stride;
    T* to = picked + size_t(sequence) * stride;
    for (u32 column = threadIdx.x % WARP * 8; column < stride; column += WARP * 8)
        *reinterpret_cast<Eight*>(to + column) = *reinterpret_cast<const Eight*>(from + column);
}

// to[s] = the mean of a sequence's rows, for MEAN_COLUMNS columns. Each warp sums every eighth row, then the block sums up.
template <class T> INLINE void mean_rows(const Batch& batch, const T* rows, u32 stride, T* means) {
    constexpr u32 WARPS = MEAN_THREADS / WARP;
    SHARED(float, sums, MEAN_THREADS * 8);
    const u32 sequence = blockIdx.x, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (sequence >= batch.sequences()) return;
    const u32 start = batch.starts()[sequence], length = batch.starts()[sequence + 1] - start;
    const u32 column = blockIdx.y * MEAN_COLUMNS + lane * 8;
    float sum[8] = {};
    if (column < stride)
        for (u32 token = warp; token < length; token += WARPS) {
            float values[8];
            load_eight(values, rows + size_t(start + token) * stride + column);
#pragma unroll
            for (int i = 0; i < 8; i++) sum[i] += values[i];
        }
#pragma unroll
    for (int i = 0; i < 8; i++) sums[threadIdx.x * 8 + i] = sum[i];
    block_barrier();
    if (warp > 0 || column >= stride) return;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        for (u32 other = 1; other < WARPS; other++) sum[i] += sums[(other * WARP + lane) * 8 + i];
        sum[i] /= length;
    }
    store_eight(means + size_t(sequence) * stride + column, sum);
}

#define ROWS(T)                                                                                               \
    KERNEL(first_rows_##T, (const u32* batch, u32 tokens_max, u32 sequences_max, const T* rows, u32 stride,   \
                            T* read)) {                                                                       \
        pick_rows<false>(Batch{batch, tokens_max, sequences_max}, rows, stride, read);                        \
    }                                                                                                         \
    KERNEL(last_rows_##T, (const u32* batch, u32 tokens_max, u32 sequences_max, const T* rows, u32 stride,    \
                           T* read)) {                                                                        \
        pick_rows<true>(Batch{batch, tokens_max, sequences_max}, rows, stride, read);                         \
    }                                                                                                         \
    KERNEL(mean_rows_##T, (const u32* batch, u32 tokens_max, u32 sequences_max, const T* rows, u32 stride,    \
                           T* read)) {                                                                        \
        mean_rows(Batch{batch, tokens_max, sequences_max}, rows, stride, read);                               \
    }
ROWS(f16)
ROWS(bf16)
