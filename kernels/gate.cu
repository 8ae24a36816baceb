// inner = act(gate) * up, where a feed-forward part is gated (Shazeer 2020). Both come out of one map, `both: [rows, 2 width]`
// with the gate first, and get their biases here, if they have some; `inner: [rows, width]`. In f32, eight values per thread;
// `count` points to the number of rows.

INLINE float silu(float x) { return x / (1.f + exp2_fast(-1.44269504088896341f * x)); }

// The numbers of the activations are those of `number` in `src/ops/cuda/launch.rs`.
INLINE float activated(float x, u32 activation) {
    if (activation == 0) return gelu_erf(x);
    if (activation == 1) return gelu_tanh(x);
    if (activation == 2) return silu(x);
    return tanhf(x);
}

template <class T> INLINE void load_with_bias(float (&to)[8], const T* from, const float* bias) {
    load_eight(to, from);
    if (!bias) return;
    float constant[8];
    load_eight(constant, bias);
#pragma unroll
    for (int i = 0; i < 8; i++) to[i] += constant[i];
}

template <class T>
INLINE void gate(const u32* count, const T* both, const float* bias, u32 width, u32 activation, T* inner) {
    const u32 groups = width / 8;
    const u32 index = blockIdx.x * blockDim.x + threadIdx.x;
    const u32 row = index / groups, column = index % groups * 8;
    if (row >= *count) return;
    const T* own = both + size_t(row) * 2 * width + column;
    float values[8], up[8];
    load_with_bias(values, own, bias ? bias + column : bias);
    load_with_bias(up, own + width, bias ? bias + width + column : bias);
#pragma unroll
    for (int i = 0; i < 8; i++) values[i] = activated(values[i], activation) * up[i];
    store_eight(inner + size_t(row) * width + column, values);
}

#define GATE(T)                                                                                                  \
    KERNEL(gate_##T, (const u32* count, const T* both, const float* bias, u32 width, u32 activation, T* inner)) { \
        gate(count, both, bias, width, activation, inner);                                                       \
    }
GATE(f16)
GATE(bf16)
