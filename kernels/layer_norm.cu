// Layer norm (Ba et al. 2016) of a row in a warp's registers, in f32 and two passes: first the mean, then the variance
// around it, because E[x^2] - E[x]^2 cancels if the mean is large.
//
// A row has `stride` values, a multiple of 32 up to 256 CHUNKS, in chunks of 8: lane l holds chunks l, l + 32, ...
// Values from `hidden` on are padding: the input, gain and bias are zero there, and the statistics leave them out.

template <int CHUNKS> struct Row {
    float values[CHUNKS][8];

    // Calls f(chunk, column) for each chunk of this lane.
    template <class F> INLINE static void each(u32 stride, F f) {
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; chunk++) {
            u32 column = (chunk * WARP + threadIdx.x % WARP) * 8;
            if (column < stride) f(chunk, column);
        }
    }
};

struct Norm {
    const float* gain;
    const float* bias;
    float epsilon;
    u32 hidden, stride;
};

// Writes row `index` of `states`, and of the E4M3 output if there is one.
template <class T, int CHUNKS>
INLINE void normalise(Row<CHUNKS>& row, const Norm& norm, T* states, const Quantised& quantised, u32 index) {
    float sum = 0.f;
    Row<CHUNKS>::each(norm.stride, [&](int chunk, u32) {
#pragma unroll
        for (int i = 0; i < 8; i++) sum += row.values[chunk][i];
    });
    const float mean = warp_sum(sum) / norm.hidden;
    float squares = 0.f;
    Row<CHUNKS>::each(norm.stride, [&](int chunk, u32 column) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float centred = row.values[chunk][i] - mean;
            if (column + i < norm.hidden) squares += centred * centred;
        }
    });
    const float inverse = rsqrtf(warp_sum(squares) / norm.hidden + norm.epsilon);
    Row<CHUNKS>::each(norm.stride, [&](int chunk, u32 column) {
        float values[8], gain[8];
        load_eight(values, norm.bias + column);
        load_eight(gain, norm.gain + column);
#pragma unroll
        for (int i = 0; i < 8; i++) values[i] += (row.values[chunk][i] - mean) * inverse * gain[i];
        const size_t place = size_t(index) * norm.stride + column;
        store_eight(states + place, values);
        if (quantised) quantised.store(place, values);
    });
}

// Calls `f` with the smallest Row that holds `stride` values; `stride` is at most 1024.
template <class F> INLINE void by_width(u32 stride, F f) {
    if (stride <= 256) f(Row<1>{});
    else if (stride <= 512) f(Row<2>{});
    else f(Row<4>{});
}

// states = norm(states + update + bias), one warp per row; `count` points to the number of rows.
template <class T>
INLINE void add_layer_norm(const u32* count, T* states, const T* update, const float* bias, const Norm& norm,
                           const Quantised& quantised) {
    const u32 index = (blockIdx.x * blockDim.x + threadIdx.x) / WARP;
    if (index >= *count) return;
    const T* state = states + size_t(index) * norm.stride;
    const T* added = update + size_t(index) * norm.stride;
    by_width(norm.stride, [&](auto row) {
        row.each(norm.stride, [&](int chunk, u32 column) {
            float before[8], more[8], constant[8];
            load_eight(before, state + column);
            load_eight(more, added + column);
            load_eight(constant, bias + column);
#pragma unroll
            for (int i = 0; i < 8; i++) row.values[chunk][i] = before[i] + more[i] + constant[i];
        });
        normalise(row, norm, states, quantised, index);
    });
}

#define ADD_LAYER_NORM(T)                                                                                    \
    KERNEL(add_layer_norm_##T, (const u32* count, T* states, const T* update, const float* update_bias,      \
                                const float* gain, const float* bias, float epsilon, u32 hidden, u32 stride, \
                                e4m3* quantised, const float* factor)) {                                     \
        const Norm norm{gain, bias, epsilon, hidden, stride};                                                \
        add_layer_norm(count, states, update, update_bias, norm, Quantised{quantised, factor});              \
    }
ADD_LAYER_NORM(f16)
ADD_LAYER_NORM(bf16)
