// The operations on queries and keys before attention, in place: a norm over each head (RMS) where the model has one, and
// rotary positions (Su et al. 2021). A head lies in two halves, each padded by itself; value i of the first half turns with
// value i of the second.
//
// `qkv: [tokens, heads + 2 kv_heads, D]`, queries first, then keys; `cosines` and `sines: [places, D / 2]` f32. The gains of
// the norms, `[D]` f32, are null if there are none; those of queries include the scale of the softmax. A group of lanes turns
// a head, 16 values each: 8 of either half.

template <class T, int D>
INLINE void rotate(const Batch& batch, T* qkv, const float* cosines, const float* sines, const float* query_gain,
                   const float* key_gain, float epsilon, u32 head_dim, u32 heads, u32 kv_heads) {
    constexpr u32 LANES = D == 32 ? 2 : D == 64 ? 4 : 8;
    static_assert(LANES * 16 >= D, "a group holds a head");
    const u32 index = (blockIdx.x * blockDim.x + threadIdx.x) / LANES, lane = threadIdx.x % LANES;
    const u32 token = index / (heads + kv_heads), head = index % (heads + kv_heads);
    // Lanes without values stay, because all lanes of a warp exchange their sums.
    const bool is_there = token < batch.tokens() && lane * 16 < D;
    T* own = qkv + (size_t(token) * (heads + 2 * kv_heads) + head) * D + lane * 8;
    float first[8] = {}, second[8] = {};
    if (is_there) {
        load_eight(first, own);
        load_eight(second, own + D / 2);
    }
    if (query_gain) {
        float squares = 0.f;
#pragma unroll
        for (int i = 0; i < 8; i++) squares += first[i] * first[i] + second[i] * second[i];
#pragma unroll
        for (u32 mask = LANES / 2; mask > 0; mask /= 2) squares += from_lane_xor(squares, mask);
        if (is_there) {
            const float inverse = rsqrtf(squares / head_dim + epsilon);
            const float* gain = (head < heads ? query_gain : key_gain) + lane * 8;
            float low[8], high[8];
            load_eight(low, gain);
            load_eight(high, gain + D / 2);
#pragma unroll
            for (int i = 0; i < 8; i++) first[i] *= inverse * low[i], second[i] *= inverse * high[i];
        }
    }
    if (!is_there) return;
    const size_t angle = size_t(batch.places()[token] & 0xffffff) * (D / 2) + lane * 8;
    float cosine[8], sine[8];
    load_eight(cosine, cosines + angle);
    load_eight(sine, sines + angle);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const float turned = first[i] * cosine[i] - second[i] * sine[i];
        second[i] = second[i] * cosine[i] + first[i] * sine[i];
        first[i] = turned;
    }
    store_eight(own, first);
    store_eight(own + D / 2, second);
}

#define ROTATE(T, D)                                                                                               \
    KERNEL(rotate_##D##_##T, (const u32* batch, u32 tokens_max, u32 sequences_max, T* qkv, const float* cosines,   \
                              const float* sines, const float* query_gain, const float* key_gain, float epsilon,   \
                              u32 head_dim, u32 heads, u32 kv_heads)) {                                            \
        const Batch in{batch, tokens_max, sequences_max};                                                          \
        rotate<T, D>(in, qkv, cosines, sines, query_gain, key_gain, epsilon, head_dim, heads, kv_heads);           \
    }
ROTATE(f16, 32)
ROTATE(f16, 64)
ROTATE(f16, 96)
ROTATE(f16, 128)
ROTATE(bf16, 32)
ROTATE(bf16, 64)
ROTATE(bf16, 96)
ROTATE(bf16, 128)
