// The layer-normalised sum of a token's three embeddings, one warp per token. Types are clamped to the last row of their
// table. Tables are `[rows, stride]`.

struct Tables {
    u32 position_offset, types;
};

template <class T>
INLINE void embed(const Batch& batch, const T* words, const T* positions, const T* types, const Tables& tables,
                  const Norm& norm, T* states, const Quantised& quantised) {
    const u32 token = (blockIdx.x * blockDim.x + threadIdx.x) / WARP;
    if (token >= batch.tokens()) return;
    const u32 place = batch.places()[token];
    const u32 type = min(place >> 24, tables.types - 1);
    const u32 position = (place & 0xffffff) + tables.position_offset;
    words += size_t(batch.ids()[token]) * norm.stride;
    positions += size_t(position) * norm.stride;
    types += size_t(type) * norm.stride;
    by_width(norm.stride, [&](auto row) {
        row.each(norm.stride, [&](int chunk, u32 column) {
            float word[8], where[8], kind[8];
            load_eight(word, words + column);
            load_eight(where, positions + column);
            load_eight(kind, types + column);
#pragma unroll
            for (int i = 0; i < 8; i++) row.values[chunk][i] = word[i] + (where[i] + kind[i]);
        });
        normalise(row, norm, states, quantised, token);
    });
}

#define EMBED(T)                                                                                                  \
    KERNEL(embed_##T, (const u32* batch, u32 tokens_max, u32 sequences_max, const T* words, const T* positions,   \
                       const T* types, u32 position_offset, u32 type_count, const float* gain, const float* bias, \
                       float epsilon, u32 hidden, u32 stride, T* states, e4m3* quantised, const float* factor)) { \
        embed(Batch{batch, tokens_max, sequences_max}, words, positions, types,                                   \
              Tables{position_offset, type_count}, Norm{gain, bias, epsilon, hidden, stride}, states,             \
              Quantised{quantised, factor});                                                                      \
    }
EMBED(f16)
EMBED(bf16)

// firsts[s] = states[starts[s]], one warp per sequence; rows have `stride` values.
template <class T> INLINE void first_rows(const Batch& batch, const T* states, u32 stride, T* firsts) {
    const u32 sequence = (blockIdx.x * blockDim.x + threadIdx.x) / WARP;
    if (sequence >= batch.sequences()) return;
    const T* from = states + size_t(batch.starts()[sequence]) * stride;
    T* to = firsts + size_t(sequence) * stride;
    for (u32 column = threadIdx.x % WARP * 8; column < stride; column += WARP * 8)
        *reinterpret_cast<Eight*>(to + column) = *reinterpret_cast<const Eight*>(from + column);
}

#define FIRST_ROWS(T)                                                                                         \
    KERNEL(first_rows_##T, (const u32* batch, u32 tokens_max, u32 sequences_max, const T* states, u32 stride, \
                            T* firsts)) {                                                                     \
        first_rows(Batch{batch, tokens_max, sequences_max}, states, stride, firsts);                          \
    }
FIRST_ROWS(f16)
FIRST_ROWS(bf16)
