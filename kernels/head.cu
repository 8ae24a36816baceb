// From first tokens' states to logits, in f32: w tanh(W x + b) + c. A block has ROWS sequences, so that a row of W is
// read once for all of them; a warp has every 16th output.
//
// `firsts: [sequences, stride]`, `pooler: [stride, stride]` f32, `pooler_bias` and `classifier: [stride]` f32.

constexpr u32 HEAD_THREADS = 512;
constexpr int ROWS = 4;

template <class T>
INLINE void head(const Batch& batch, const T* firsts, const float* pooler, const float* pooler_bias,
                 const float* classifier, float classifier_bias, u32 stride, float* logits) {
    SHARED(float, states, ROWS * STRIDE_MAX);
    SHARED(float, parts, ROWS * (HEAD_THREADS / WARP));
    const u32 first = blockIdx.x * ROWS, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const u32 warps = HEAD_THREADS / WARP;
    if (first >= batch.sequences()) return;
    const u32 count = min(batch.sequences() - first, u32(ROWS));
    for (u32 i = threadIdx.x; i < ROWS * stride; i += HEAD_THREADS)
        states[i] = i < count * stride ? to_float(firsts[size_t(first) * stride + i]) : 0.f;
    block_barrier();
    float logit[ROWS] = {};
    for (u32 output = warp; output < stride; output += warps) {
        float sums[ROWS] = {};
        for (u32 column = lane; column < stride; column += WARP) {
            const float weight = pooler[size_t(output) * stride + column];
#pragma unroll
            for (int row = 0; row < ROWS; row++) sums[row] += weight * states[row * stride + column];
        }
#pragma unroll
        for (int row = 0; row < ROWS; row++)
            logit[row] += classifier[output] * tanhf(warp_sum(sums[row]) + pooler_bias[output]);
    }
#pragma unroll
    for (int row = 0; row < ROWS; row++)
        if (lane == 0) parts[row * warps + warp] = logit[row];
    block_barrier();
    if (threadIdx.x < count) {
        float sum = classifier_bias;
        for (u32 part = 0; part < warps; part++) sum += parts[threadIdx.x * warps + part];
        logits[first + threadIdx.x] = sum;
    }
}

#define HEAD(T)                                                                                                  \
    KERNEL head_##T(const u32* batch, u32 tokens_max, u32 sequences_max, const T* firsts, const float* pooler,  \
                    const float* pooler_bias, const float* classifier, float classifier_bias, u32 stride,       \
                    float* logits) {                                                                            \
        head(Batch{batch, tokens_max, sequences_max}, firsts, pooler, pooler_bias, classifier, classifier_bias, \
             stride, logits);                                                                                   \
    }
HEAD(f16)
HEAD(bf16)
