// Logits from the states of first tokens, in f32: w tanh(W x + b) + c. `pool` computes the contribution of each group of 32
// outputs of W to a sequence's logit; `head` sums the contributions.
//
// `firsts: [sequences, stride]`; `pooler: [inputs, outputs]` f32, both `stride`; `pooler_bias` and `classifier: [stride]`
// f32; `parts: [sequences, stride / 32]` f32.

constexpr u32 POOL_THREADS = 256;
// Sequences of a block, which reads each row of W once for all of them. First each warp sums over an eighth of the inputs,
// then each warp finishes one sequence.
constexpr u32 POOLED = 8;
static_assert(POOLED * WARP == POOL_THREADS, "a warp for each sequence");

template <class T>
INLINE void pool(const Batch& batch, const T* firsts, const float* pooler, const float* pooler_bias,
                 const float* classifier, u32 stride, float* parts) {
    SHARED(float, states, POOLED * STRIDE_MAX);
    SHARED(float, sums, POOLED * POOLED * WARP);
    const u32 first = blockIdx.x * POOLED, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (first >= batch.sequences()) return;
    const u32 count = min(batch.sequences() - first, POOLED), output = blockIdx.y * WARP + lane;
    for (u32 i = threadIdx.x; i < POOLED * stride; i += POOL_THREADS)
        states[i] = i < count * stride ? to_float(firsts[size_t(first) * stride + i]) : 0.f;
    block_barrier();
    float own[POOLED] = {};
    const u32 share = stride / POOLED;
#pragma unroll 4
    for (u32 input = warp * share; input < (warp + 1) * share; input++) {
        const float weight = pooler[size_t(input) * stride + output];
#pragma unroll
        for (u32 row = 0; row < POOLED; row++) own[row] += weight * states[row * stride + input];
    }
#pragma unroll
    for (u32 row = 0; row < POOLED; row++) sums[(row * POOLED + warp) * WARP + lane] = own[row];
    block_barrier();
    float pooled = pooler_bias[output];
#pragma unroll
    for (u32 part = 0; part < POOLED; part++) pooled += sums[(warp * POOLED + part) * WARP + lane];
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

#define HEAD(T)                                                                                                  \
    KERNEL(pool_##T, (const u32* batch, u32 tokens_max, u32 sequences_max, const T* firsts, const float* pooler, \
                      const float* pooler_bias, const float* classifier, u32 stride, float* parts)) {            \
        pool(Batch{batch, tokens_max, sequences_max}, firsts, pooler, pooler_bias, classifier, stride, parts);   \
    }                                                                                                            \
    KERNEL(head_##T, (const u32* batch, u32 tokens_max, u32 sequences_max, const float* parts, u32 count,        \
                      float bias, float* logits)) {                                                              \
        head(Batch{batch, tokens_max, sequences_max}, parts, count, bias, logits);                               \
    }
HEAD(f16)
HEAD(bf16)
