// The last layer's attention, for first tokens alone: only their states reach the head. Keys are absorbed into the
// query, u = Wk^T q for each head, and values into what follows, context = Wv z, so that one read of a sequence's
// states gives z = sum of p x with p = softmax(u x). (The same product, read from the other side; exact.)
//
// `absorbed: [sequences, heads, stride]` f32, `states: [tokens, stride]`, `mixed: [sequences, heads, stride]`.
// A block has GROUP heads of one sequence; `scores` has room for the longest sequence, for each of them.

constexpr u32 FIRST_TOKEN_THREADS = 256;
constexpr int GROUP = 4;
constexpr u32 STRIDE_MAX = 1024;

template <class T>
INLINE void first_token(const Batch& batch, const float* absorbed, const T* states, T* mixed, u32 heads, u32 stride,
                        float* scores) {
    SHARED(float, asked, GROUP * STRIDE_MAX);
    SHARED(float, inverse, GROUP);
    const u32 sequence = blockIdx.x, first_head = blockIdx.y * GROUP;
    if (sequence >= batch.sequences()) return;
    const u32 start = batch.starts()[sequence], length = batch.starts()[sequence + 1] - start;
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warps = FIRST_TOKEN_THREADS / WARP;
    const u32 count = min(heads - first_head, u32(GROUP));
    const size_t own = (size_t(sequence) * heads + first_head) * stride;
    states += size_t(start) * stride;
    for (u32 i = threadIdx.x; i < GROUP * stride; i += FIRST_TOKEN_THREADS)
        asked[i] = i < count * stride ? absorbed[own + i] : 0.f;
    block_barrier();
    for (u32 token = warp; token < length; token += warps) {
        float sums[GROUP] = {};
        for (u32 column = lane * 8; column < stride; column += WARP * 8) {
            float x[8];
            load_eight(x, states + size_t(token) * stride + column);
#pragma unroll
            for (int head = 0; head < GROUP; head++)
#pragma unroll
                for (int i = 0; i < 8; i++) sums[head] += asked[head * stride + column + i] * x[i];
        }
#pragma unroll
        for (int head = 0; head < GROUP; head++) {
            const float sum = warp_sum(sums[head]);
            if (lane == 0) scores[head * length + token] = sum;
        }
    }
    block_barrier();
    if (warp < GROUP) {
        float* own_scores = scores + warp * length;
        float largest = LOWEST, sum = 0.f;
        for (u32 token = lane; token < length; token += WARP) largest = fmaxf(largest, own_scores[token]);
        largest = warp_max(largest);
        for (u32 token = lane; token < length; token += WARP) {
            const float weight = exp2_fast(own_scores[token] - largest);
            own_scores[token] = weight;
            sum += weight;
        }
        sum = warp_sum(sum);
        if (lane == 0) inverse[warp] = 1.f / sum;
    }
    block_barrier();
    for (u32 column = threadIdx.x * 2; column < stride; column += FIRST_TOKEN_THREADS * 2) {
        Pair sums[GROUP] = {};
        for (u32 token = 0; token < length; token++) {
            const u32 word = *reinterpret_cast<const u32*>(states + size_t(token) * stride + column);
            const Pair x = unpack<T>(word);
#pragma unroll
            for (int head = 0; head < GROUP; head++) {
                const float weight = scores[head * length + token];
                sums[head].low += weight * x.low;
                sums[head].high += weight * x.high;
            }
        }
        for (u32 head = 0; head < count; head++) {
            const float scale = inverse[head];
            const u32 pair = pack(T{}, sums[head].low * scale, sums[head].high * scale);
            *reinterpret_cast<u32*>(mixed + own + size_t(head) * stride + column) = pair;
        }
    }
}

#define FIRST_TOKEN(T)                                                                                          \
    KERNEL first_token_##T(const u32* batch, u32 tokens_max, u32 sequences_max, const float* absorbed,         \
                           const T* states, T* mixed, u32 heads, u32 stride) {                                 \
        SHARED_DYNAMIC(scores);                                                                                \
        first_token(Batch{batch, tokens_max, sequences_max}, absorbed, states, mixed, heads, stride, scores);  \
    }
FIRST_TOKEN(f16)
FIRST_TOKEN(bf16)
