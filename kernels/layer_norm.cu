// Norms of a row in registers, in f32: layer norm (Ba et al. 2016), or RMS norm (Zhang and Sennrich 2019). A layer norm takes
// two passes: first the mean, then the variance around it, because E[x^2] - E[x]^2 cancels if the mean is large.
//
// A row has `stride` values, a multiple of 32 up to ROW_MAX, in chunks of 8. A team of LANES threads holds it, a warp up to
// WARP_ROW_MAX values and a block of NORM_THREADS a wider one: lane l holds chunks l, l + LANES, ... Values from `hidden` on
// are padding: the input, gain and bias are zero there, and the statistics leave them out.

constexpr u32 NORM_THREADS = 256;
constexpr u32 WARP_ROW_MAX = 1024;
constexpr u32 ROW_MAX = 8192;

// The sum over a team. If the team is a block, all its threads call this.
template <u32 LANES> INLINE float team_sum(float x) {
    x = warp_sum(x);
    if constexpr (LANES > WARP) {
        SHARED(float, parts, LANES / WARP);
        // The parts of the previous sum have been read.
        block_barrier();
        if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = x;
        block_barrier();
        x = 0.f;
#pragma unroll
        for (u32 part = 0; part < LANES / WARP; part++) x += parts[part];
    }
    return x;
}

template <int CHUNKS, u32 LANES> struct Row {
    float values[CHUNKS][8];

    // Calls f(chunk, column) for each chunk of this lane.
    template <class F> INLINE static void each(u32 stride, F f) {
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; chunk++) {
            u32 column = (chunk * LANES + threadIdx.x % LANES) * 8;
            if (column < stride) f(chunk, column);
        }
    }
};

// Without a norm `gain` is null, and a norm without a bias has none.
struct Norm {
    const float* gain;
    const float* bias;
    float epsilon;
    u32 is_rms, hidden, stride;
};

// Replaces a row by its norm.
template <int CHUNKS, u32 LANES> INLINE void normalise(Row<CHUNKS, LANES>& row, const Norm& norm) {
    float mean = 0.f;
    if (!norm.is_rms) {
        float sum = 0.f;
        row.each(norm.stride, [&](int chunk, u32) {
#pragma unroll
            for (int i = 0; i < 8; i++) sum += row.values[chunk][i];
        });
        mean = team_sum<LANES>(sum) / norm.hidden;
    }
    float squares = 0.f;
    row.each(norm.stride, [&](int chunk, u32 column) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float centred = row.values[chunk][i] - mean;
            if (column + i < norm.hidden) squares += centred * centred;
        }
    });
    const float inverse = rsqrtf(team_sum<LANES>(squares) / norm.hidden + norm.epsilon);
    row.each(norm.stride, [&](int chunk, u32 column) {
        float values[8] = {}, gain[8];
        if (norm.bias) load_eight(values, norm.bias + column);
        load_eight(gain, norm.gain + column);
#pragma unroll
        for (int i = 0; i < 8; i++) row.values[chunk][i] = values[i] + (row.values[chunk][i] - mean) * inverse * gain[i];
    });
}

// Writes row `index` of `to`, and of the E4M3 output if there is one.
template <class T, int CHUNKS, u32 LANES>
INLINE void store_row(const Row<CHUNKS, LANES>& row, u32 stride, T* to, const Quantised& quantised, u32 index) {
    row.each(stride, [&](int chunk, u32 column) {
        const size_t place = size_t(index) * stride + column;
        store_eight(to + place, row.values[chunk]);
        if (quantised) quantised.store(place, row.values[chunk]);
    });
}

// Calls `f` with the smallest Row that holds `stride` values.
template <class F> INLINE void by_width(u32 stride, F f) {
    if (stride <= 256) f(Row<1, WARP>{});
    else if (stride <= 512) f(Row<2, WARP>{});
    else if (stride <= WARP_ROW_MAX) f(Row<4, WARP>{});
    else if (stride <= ROW_MAX / 2) f(Row<2, NORM_THREADS>{});
    else f(Row<4, NORM_THREADS>{});
}

// The row of this thread's team.
INLINE u32 row_index(u32 stride) {
    return stride <= WARP_ROW_MAX ? (blockIdx.x * blockDim.x + threadIdx.x) / WARP : blockIdx.x;
}

// row = states + update + bias, for row `index`. There may be no bias.
template <class T, int CHUNKS, u32 LANES>
INLINE void add(Row<CHUNKS, LANES>& row, const T* states, const T* update, const float* bias, u32 stride, u32 index) {
    row.each(stride, [&](int chunk, u32 column) {
        const size_t place = size_t(index) * stride + column;
        float before[8], more[8], constant[8] = {};
        load_eight(before, states + place);
        load_eight(more, update + place);
        if (bias) load_eight(constant, bias + column);
#pragma unroll
        for (int i = 0; i < 8; i++) row.values[chunk][i] = before[i] + more[i] + constant[i];
    });
}

// states = norm(states + update + bias), one team per row; `count` points to the number of rows.
template <class T>
INLINE void add_layer_norm(const u32* count, T* states, const T* update, const float* bias, const Norm& norm,
                           const Quantised& quantised) {
    const u32 index = row_index(norm.stride);
    if (index >= *count) return;
    by_width(norm.stride, [&](auto row) {
        add(row, states, update, bias, norm.stride, index);
        normalise(row, norm);
        store_row(row, norm.stride, states, quantised, index);
    });
}

#define ADD_LAYER_NORM(T)                                                                                     \
    KERNEL(add_layer_norm_##T, (const u32* count, T* states, const T* update, const float* update_bias,       \
                                const float* gain, const float* bias, float epsilon, u32 is_rms, u32 hidden,  \
                                u32 stride, e4m3* quantised, const float* factor)) {                          \
        const Norm norm{gain, bias, epsilon, is_rms, hidden, stride};                                         \
        add_layer_norm(count, states, update, update_bias, norm, Quantised{quantised, factor});               \
    }
ADD_LAYER_NORM(f16)
ADD_LAYER_NORM(bf16)

// states += update + bias; normed = norm(states), where states are not rounded in between. Without an update states stay,
// without a norm nothing is normed. One team per row; `count` points to the number of rows.
template <class T>
INLINE void add_and_norm(const u32* count, T* states, const T* update, const float* bias, const Norm& norm, T* normed) {
    const u32 index = row_index(norm.stride);
    if (index >= *count) return;
    by_width(norm.stride, [&](auto row) {
        if (update) {
            add(row, states, update, bias, norm.stride, index);
            store_row(row, norm.stride, states, Quantised{}, index);
        } else {
            row.each(norm.stride, [&](int chunk, u32 column) {
                load_eight(row.values[chunk], states + size_t(index) * norm.stride + column);
            });
        }
        if (!norm.gain) return;
        normalise(row, norm);
        store_row(row, norm.stride, normed, Quantised{}, index);
    });
}

#define ADD_AND_NORM(T)                                                                                      \
    KERNEL(add_and_norm_##T, (const u32* count, T* states, const T* update, const float* update_bias,        \
                              const float* gain, const float* bias, float epsilon, u32 is_rms, u32 hidden,   \
                              u32 stride, T* normed)) {                                                      \
        const Norm norm{gain, bias, epsilon, is_rms, hidden, stride};                                        \
        add_and_norm(count, states, update, update_bias, norm, normed);                                      \
    }
ADD_AND_NORM(f16)
ADD_AND_NORM(bf16)
