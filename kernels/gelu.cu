// x = gelu(x + bias), in place or quantised, in f32 (Hendrycks and Gimpel 2016), for the rows that `count` says; `x: [rows, width]`,
// eight values a thread.

// x Phi(x) to 3e-5, which is exact to a half: Phi(x) - 1/2 is odd, and 1/2 from 4.4 on to 6e-6; x P(x^2) meets it there,
// and up to there has the least largest error that nine coefficients, in an argument from -1 to 1, can have.
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
    float values[8], constant[8];
    load_eight(values, x + place);
    load_eight(constant, bias + column);
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
