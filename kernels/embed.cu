// The sum of a token's embeddings, normed where the model norms it; one team per token (`layer_norm.cu`). Positions and types
// are null if the model has none. Types are clamped to the last row of their table. Tables are `[rows, stride]`.

struct Tables {
    u32 position_offset, types;
};

template <class T>
INLINE void embed(const Batch& batch, const T* words, const T* positions, const T* types, const Tables& tables,
                  const Norm& norm, T* states, const Quantised& quantised) {
    const u32 token = row_index(norm.stride);
    if (token >= batch.tokens()) return;
    const u32 place = batch.places()[token];
    words += size_t(batch.ids()[token]) * norm.stride;
    if (positions) positions += size_t((place & 0xffffff) + tables.position_offset) * norm.stride;
    if (types) types += size_t(min(place >> 24, tables.types - 1)) * norm.stride;
    by_width(norm.stride, [&](auto row) {
        row.each(norm.stride, [&](int chunk, u32 column) {
            float word[8], where[8] = {}, kind[8] = {};
            load_eight(word, words + column);
            if (positions) load_eight(where, positions + column);
            if (types) load_eight(kind, types + column);
#pragma unroll
            for (int i = 0; i < 8; i++) row.values[chunk][i] = word[i] + (where[i] + kind[i]);
        });
        if (norm.gain) normalise(row, norm);
        store_row(row, norm.stride, states, quantised, token);
    });
}

#define EMBED(T)                                                                                                  \
    KERNEL(embed_##T, (const u32* batch, u32 tokens_max, u32 sequences_max, const T* words, const T* positions,   \
                       const T* types, u32 position_offset, u32 type_count, const float* gain, const float* bias, \
                       float epsilon, u32 is_rms, u32 hidden, u32 stride, T* states, e4m3* quantised,             \
                       const float* factor)) {                                                                    \
        embed(Batch{batch, tokens_max, sequences_max}, words, positions, types,                                   \
              Tables{position_offset, type_count}, Norm{gain, bias, epsilon, is_rms, hidden, stride}, states,     \
              Quantised{quantised, factor});                                                                      \
    }
EMBED(f16)
EMBED(bf16)
