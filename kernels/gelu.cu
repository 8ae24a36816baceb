// x = gelu(x + bias), if there is a bias, in place or to an E4M3 output, computed in f32 (Hendrycks and Gimpel 2016). `x: [rows, width]`, eight
// values per thread; `count` points to the number of rows.

// x Phi(x) within 3e-5, below the rounding error of f16. Phi(x) - 1/2 is odd, and within 6e-6 of 1/2 beyond 4.4, so x is
// clamped there. Below, x P(x^2) is the minimax polynomial with nine coefficients; its argument is mapped to -1..1.
INLINE float gelu_erf(float x) {
    constexpr float END = 4.4f;
    constexpr float P[9] = {0.160404414f,    -0.0786123425f, 0.0552508309f,  -0.0400888361f,  0.026800191f,
                            -0.0159781631f, 0.0109919701f,  -0.007883301f, 0.00275160582f};
    const float inside = fminf(fmaxf(x, -END), END), t = inside * inside * (2.f / (END * END)) - 1.f;
    float odd = P[8];
#pragma unroll
    for (int i = 7; i >= 0; i--) odd = odd * t + P[i];
    return x * (0.5f + inside * odd);
}
INLINE float gelu_tanh(float x) {
    return 0.5f * x * (1.f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
}

template <class T>
INLINE void gelu(const u32* count, T* x, const float* bias, u32 width, u32 is_tanh, const Quantised& quantised) {
    const u32 groups = width / 8;
    const u32 index = blockIdx.x * blockDim.x + threadIdx.x;
    const u32 row = index / groups, column = index % groups * 8;
    if (row >= *count) return;
    const size_t place = size_t(row) * width + column;
    float values[8], constant[8] = {};
    load_eight(values, x + place);
    if (bias) load_eight(constant, bias + column);
#pragma unroll
    for (int i = 0; i < 8; i++) values[i] += constant[i];
    if (is_tanh) {
#pragma unroll
        for (int i = 0; i < 8; i++) values[i] = gelu_tanh(values[i]);
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) values[i] = gelu_erf(values[i]);
    }
    if (quantised) quantised.store(place, values);
    else store_eight(x + place, values);
}

#define GELU(T)                                                                                           \
    KERNEL(gelu_##T, (const u32* count, T* x, const float* bias, u32 width, u32 is_tanh, e4m3* quantised, \
                      const float* factor)) {                                                             \
        gelu(count, x, bias, width, is_tanh, Quantised{quantised, factor});                               \
    }
GELU(f16)
GELU(bf16)
