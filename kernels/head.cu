// Logits from the rows that the head reads, in f32. `rows: [sequences, stride]`; weights of a dense map `[inputs, outputs]`
// f32, both `stride`.
//
// w tanh(W x + b) + c takes two steps: `pool` computes the contribution of each group of 32 outputs of W to a sequence's
// logit, and `head` sums the contributions, `parts: [sequences, stride / 32]` f32. Every other head takes two others: `dense`
// is act(W x + b), `[sequences, stride]` f32, where the head has that map, and `score` is w norm(x) + c.

constexpr u32 POOL_THREADS = 256;
// Sequences of a block, which reads each row of W once for all of them. First each warp sums over an eighth of the inputs,
// then each warp finishes one sequence.
constexpr u32 POOLED = 8;
static_assert(POOLED * WARP == POOL_THREADS, "a warp for each sequence");

// The value of W x + b at `output` for this warp's sequence, one of `count` whose rows begin at `rows`. All threads call it.
template <class T>
INLINE float mapped(const T* rows, u32 count, const float* weights, const float* bias, u32 output, u32 stride) {
    SHARED(float, states, POOLED * STRIDE_MAX);
    SHARED(float, sums, POOLED * POOLED * WARP);
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    float own[POOLED] = {};
    for (u32 from = 0; from < stride; from += STRIDE_MAX) {
        const u32 width = min(stride - from, STRIDE_MAX), share = width / POOLED;
        if (from > 0) block_barrier();
        for (u32 row = 0; row < POOLED; row++)
            for (u32 i = threadIdx.x; i < width; i += POOL_THREADS)
                states[row * width + i] = row < count ? to_float(rows[size_t(row) * stride + from + i]) : 0.f;
        block_barrier();
#pragma unroll 4
        for (u32 input = warp * share; input < (warp + 1) * share; input++) {
            const float weight = weights[size_t(from + input) * stride + output];
#pragma unroll
            for (u32 row = 0; row < POOLED; row++) own[row] += weight * states[row * width + input];
        }
    }
#pragma unroll
    for (u32 row = 0; row < POOLED; row++) sums[(row * POOLED + warp) * WARP + lane] = own[row];
    block_barrier();
    float value = bias[output];
#pragma unroll
    for (u32 part = 0; part < POOLED; part++) value += sums[(warp * POOLED + part) * WARP + lane];
    return value;
}

template <class T>
INLINE void pool(const Batch& batch, const T* rows, const float* pooler, const float* pooler_bias,
                 const float* classifier, u32 stride, float* parts) {
    const u32 first = blockIdx.x * POOLED, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (first >= batch.sequences()) return;
    const u32 count = min(batch.sequences() - first, POOLED), output = blockIdx.y * WARP + lane;
    const float pooled = mapped(rows + size_t(first) * stride, count, pooler, pooler_bias, output, stride);
    const float part = warp_sum(classifier[output] * tanhf(pooled));
    if (lane == 0 && warp < count) parts[size_t(first + warp) * gridDim.y + blockIdx.y] = part;
}

INLINE void head(const Batch& batch, const float* parts, u32 count, float bias, float* logits) {
    const u32 sequence = blockIdx.x * blockDim.x + threadIdx.x;
    if (sequence >= batch.sequences()) return;
    float logit = bias;
    for (u32 part = 0; part < count; part++) logit += parts[size_t(sequence) * count + part];
    logits[sequence] = logit;
}

template <class T>
INLINE void dense(const Batch& batch, const T* rows, const float* weights, const float* bias, u32 activation, u32 stride,
                  float* mapped_rows) {
    const u32 first = blockIdx.x * POOLED, warp = threadIdx.x / WARP;
    if (first >= batch.sequences()) return;
    const u32 count = min(batch.sequences() - first, POOLED), output = blockIdx.y * WARP + threadIdx.x % WARP;
    const float value = mapped(rows + size_t(first) * stride, count, weights, bias, output, stride);
    if (warp < count) mapped_rows[size_t(first + warp) * stride + output] = activated(value, activation);
}

// One team per sequence (`layer_norm.cu`). Reads `mapped_rows` if the head has a dense map, else `rows`.
template <class T, int CHUNKS, u32 LANES>
INLINE void score_row(Row<CHUNKS, LANES>& row, const T* rows, const float* mapped_rows, const Norm& norm,
                      const float* weights, float bias, u32 sequence, float* logits) {
    const size_t start = size_t(sequence) * norm.stride;
    row.each(norm.stride, [&](int chunk, u32 column) {
        if (mapped_rows) load_eight(row.values[chunk], mapped_rows + start + column);
        else load_eight(row.values[chunk], rows + start + column);
    });
    if (norm.gain) normalise(row, norm);
    float sum = 0.f;
    row.each(norm.stride, [&](int chunk, u32 column) {
        float weight[8];
        load_eight(weight, weights + column);
#pragma unroll
        for (int i = 0; i < 8; i++) sum += row.values[chunk][i] * weight[i];
    });
    sum = team_sum<LANES>(sum);
    if (threadIdx.x % LANES == 0) logits[sequence] = sum + bias;
}

template <class T>
INLINE void score(const Batch& batch, const T* rows, const float* mapped_rows, const Norm& norm, const float* weights,
                  float bias, float* logits) {
    const u32 sequence = row_index(norm.stride);
    if (sequence >= batch.sequences()) return;
    by_width(norm.stride, [&](auto row) { score_row(row, rows, mapped_rows, norm, weights, bias, sequence, logits); });
}

#define HEAD(T)                                                                                                    \
    KERNEL(pool_##T, (const u32* batch, u32 tokens_max, u32 sequences_max, const T* rows, const float* pooler,     \
                      const float* pooler_bias, const float* classifier, u32 stride, float* parts)) {              \
        pool(Batch{batch, tokens_max, sequences_max}, rows, pooler, pooler_bias, classifier, stride, parts);       \
    }                                                                                                              \
    KERNEL(head_##T, (const u32* batch, u32 tokens_max, u32 sequences_max, const float* parts, u32 count,          \
                      float bias, float* logits)) {                                                                \
        head(Batch{batch, tokens_max, sequences_max}, parts, count, bias, logits);                                 \
    }                                                                                                              \
    KERNEL(dense_##T, (const u32* batch, u32 tokens_max, u32 sequences_max, const T* rows, const float* weights,   \
                       const float* dense_bias, u32 activation, u32 stride, float* mapped_rows)) {                 \
        dense(Batch{batch, tokens_max, sequences_max}, rows, weights, dense_bias, activation, stride, mapped_rows); \
    }                                                                                                              \
    KERNEL(score_##T, (const u32* batch, u32 tokens_max, u32 sequences_max, const T* rows, const float* mapped_rows, \
                       const float* gain, const float* bias, float epsilon, u32 is_rms, u32 hidden, u32 stride,    \
                       const float* weights, float constant, float* logits)) {                                     \
        score(Batch{batch, tokens_max, sequences_max}, rows, mapped_rows,                                          \
              Norm{gain, bias, epsilon, is_rms, hidden, stride}, weights, constant, logits);                       \
    }
HEAD(f16)
HEAD(bf16)
