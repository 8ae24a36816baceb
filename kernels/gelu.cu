// x = gelu(x + bias) in place, in f32 (Hendrycks and Gimpel 2016), for the rows that `count` says; `x: [rows, width]`,
// eight values a thread.

INLINE float gelu_erf(float x) { return 0.5f * x * (1.f + erff(x * 0.70710678118654752f)); }
INLINE float gelu_tanh(float x) {
    return 0.5f * x * (1.f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
}

template <class T> INLINE void gelu(const u32* count, T* x, const float* bias, u32 width, u32 is_tanh) {
    const u32 groups = width / 8;
    const u32 index = blockIdx.x * blockDim.x + threadIdx.x;
    const u32 row = index / groups, column = index % groups * 8;
    if (row >= *count) return;
    T* place = x + size_t(row) * width + column;
    float values[8];
    load_eight(values, place);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        float value = values[i] + bias[column + i];
        values[i] = is_tanh ? gelu_tanh(value) : gelu_erf(value);
    }
    store_eight(place, values);
}

#define GELU(T)                                                                                   \
    KERNEL gelu_##T(const u32* count, T* x, const float* bias, u32 width, u32 is_tanh) {         \
        gelu(count, x, bias, width, is_tanh);                                                    \
    }
GELU(f16)
GELU(bf16)
