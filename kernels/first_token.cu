// The last layer's attention for the first token of each sequence, the only one that the head reads. Keys are absorbed into
// the query, u = Wk^T q for each head, and values into the next step, context = Wv z. The kernel computes
// z = sum of p x over the sequence's states x, with p = softmax(u x). By associativity this is exact.
//
// `absorbed: [sequences, heads, stride]` f32, `states: [tokens, stride]`, `mixed: [sequences, heads, stride]`. A block
// handles up to 16 heads of one sequence, one per row of a tensor-core tile. It reads the tokens in chunks of 128 with an
// online softmax. Both left operands, u and p, are split into a 16-bit value and a 16-bit remainder, so that the result is
// nearly that of f32.

constexpr u32 FIRST_TOKEN_THREADS = 256;
constexpr u32 GROUP = 16;
constexpr u32 CHUNK = 128;
// Tokens of a chunk that one warp scores, and columns that it mixes at once.
constexpr u32 SCORED = 16, COLUMNS = 64;
// Padding, so that the rows that lanes read together lie in different banks.
constexpr u32 ASKED_PAD = 32, SCORES_STRIDE = CHUNK + 4, WEIGHTS_STRIDE = CHUNK + 8;
constexpr u32 STRIDE_MAX = 1024;

// Two values, each as a 16-bit value and a 16-bit remainder.
struct Split { u32 high, low; };
template <class T> INLINE Split split(float x, float y) {
    const u32 high = pack(T{}, x, y);
    const Pair rounded = unpack<T>(high);
    return {high, pack(T{}, x - rounded.low, y - rounded.high)};
}

template <class T> INLINE Eight row_or_zero(const T* row, bool is_there) {
    return is_there ? *reinterpret_cast<const Eight*>(row) : Eight{};
}

// scores += u x for 16 tokens from `rows` on, of which `left` exist. The order of the inner dimension does not matter, so a
// lane reads eight neighbouring values of x and of u in place of the four pairs that the instruction's layout names.
template <class T>
INLINE void ask(float (&scores)[2][4], const T* high, const T* low, const T* rows, u32 stride, u32 left) {
    const u32 lane = threadIdx.x % WARP, g = lane / 4, asked_stride = stride + ASKED_PAD;
#pragma unroll 2
    for (u32 column = lane % 4 * 8; column < stride; column += 32) {
        auto asked = [&](const T* part, u32 row) {
            return *reinterpret_cast<const Eight*>(part + row * asked_stride + column);
        };
        const Eight a[2][2] = {{asked(high, g), asked(high, g + 8)}, {asked(low, g), asked(low, g + 8)}};
#pragma unroll
        for (u32 n = 0; n < 2; n++) {
            const u32 token = n * 8 + g;
            const Eight x = row_or_zero(rows + size_t(token) * stride + column, token < left);
#pragma unroll
            for (u32 part = 0; part < 2; part++)
#pragma unroll
                for (u32 i = 0; i < 4; i += 2) {
                    const u32 u[4] = {a[part][0].words[i], a[part][1].words[i], a[part][0].words[i + 1],
                                      a[part][1].words[i + 1]};
                    mma(T{}, scores[n], u, x.words[i], x.words[i + 1]);
                }
        }
    }
}

// mixed += p x for `left` tokens from `rows` on and 64 columns. This lane reads eight columns of each token: column g of the
// instruction in product i is column 8 g + i.
template <class T>
INLINE void mix(float (&mixed)[8][4], const T* high, const T* low, const T* rows, u32 stride, bool is_there, u32 left) {
    const u32 lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4 * 2;
    for (u32 from = 0; from < left; from += 16) {
        auto weights = [&](const T* part, u32 row, u32 token) {
            return *reinterpret_cast<const u32*>(part + row * WEIGHTS_STRIDE + from + t + token);
        };
        const u32 p[2][4] = {{weights(high, g, 0), weights(high, g + 8, 0), weights(high, g, 8), weights(high, g + 8, 8)},
                             {weights(low, g, 0), weights(low, g + 8, 0), weights(low, g, 8), weights(low, g + 8, 8)}};
        Eight x[4];
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 token = from + t + i % 2 + i / 2 * 8;
            x[i] = row_or_zero(rows + size_t(token) * stride, is_there && token < left);
        }
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            auto pair = [&](const Eight& even, const Eight& odd) {
                const u32 a = even.words[i / 2], b = odd.words[i / 2];
                return i % 2 ? a >> 16 | (b & 0xffff0000u) : (a & 0xffffu) | b << 16;
            };
            const u32 b0 = pair(x[0], x[1]), b1 = pair(x[2], x[3]);
            mma(T{}, mixed[i], p[0], b0, b1);
            mma(T{}, mixed[i], p[1], b0, b1);
        }
    }
}

// The softmax state that a block shares: scores and weights of the current chunk, and running sums.
template <class T> struct Softmax {
    float scores[GROUP * SCORES_STRIDE];
    T high[GROUP * WEIGHTS_STRIDE], low[GROUP * WEIGHTS_STRIDE];
    float shrink[GROUP], total[GROUP];
};

// Each warp covers GROUPS groups of 64 columns; `memory` holds u.
template <int GROUPS, class T>
INLINE void first_token(const Batch& batch, const float* absorbed, const T* states, T* mixed, u32 heads, u32 stride,
                        float* memory, Softmax<T>& softmax) {
    constexpr u32 WARPS = FIRST_TOKEN_THREADS / WARP;
    const u32 sequence = blockIdx.x, first_head = blockIdx.y * GROUP;
    if (sequence >= batch.sequences()) return;
    const u32 start = batch.starts()[sequence], length = batch.starts()[sequence + 1] - start;
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4 * 2;
    const u32 count = min(heads - first_head, GROUP);
    const size_t own = (size_t(sequence) * heads + first_head) * stride;
    T* asked_high = reinterpret_cast<T*>(memory);
    T* asked_low = asked_high + GROUP * (stride + ASKED_PAD);
    states += size_t(start) * stride;
    for (u32 head = warp; head < GROUP; head += WARPS)
        for (u32 column = lane * 2; column < stride; column += WARP * 2) {
            const float* asked = absorbed + own + size_t(head) * stride + column;
            const Split u = head < count ? split<T>(asked[0], asked[1]) : Split{};
            const u32 place = head * (stride + ASKED_PAD) + column;
            *reinterpret_cast<u32*>(asked_high + place) = u.high;
            *reinterpret_cast<u32*>(asked_low + place) = u.low;
        }
    float sums[GROUPS][8][4] = {};
    // Running maximum and sum of this warp's two rows.
    float largest[2] = {LOWEST, LOWEST}, sum[2] = {};
    block_barrier();
    for (u32 chunk = 0; chunk < length; chunk += CHUNK) {
        const u32 left = min(length - chunk, CHUNK);
        const T* rows = states + size_t(chunk) * stride;
        const u32 scored = warp * SCORED;
        if (scored < left) {
            float asked[2][4] = {};
            ask(asked, asked_high, asked_low, rows + size_t(scored) * stride, stride, left - scored);
#pragma unroll
            for (u32 i = 0; i < 8; i++)
                softmax.scores[(g + i % 4 / 2 * 8) * SCORES_STRIDE + scored + i / 4 * 8 + t + i % 2] = asked[i / 4][i % 4];
        }
        block_barrier();
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            const u32 row = 2 * warp + i;
            // Each lane handles four neighbouring tokens.
            float values[4], now = largest[i];
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                const u32 token = lane * 4 + j;
                values[j] = token < left ? softmax.scores[row * SCORES_STRIDE + token] : LOWEST;
                now = fmaxf(now, values[j]);
            }
            now = warp_max(now);
            const float less = exp2_fast(largest[i] - now);
            largest[i] = now;
            float added = 0.f;
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                values[j] = lane * 4 + j < left ? exp2_fast(values[j] - now) : 0.f;
                added += values[j];
            }
            sum[i] = sum[i] * less + warp_sum(added);
#pragma unroll
            for (u32 j = 0; j < 4; j += 2) {
                const Split p = split<T>(values[j], values[j + 1]);
                const u32 place = row * WEIGHTS_STRIDE + lane * 4 + j;
                *reinterpret_cast<u32*>(softmax.high + place) = p.high;
                *reinterpret_cast<u32*>(softmax.low + place) = p.low;
            }
            if (lane == 0) softmax.shrink[row] = less, softmax.total[row] = sum[i];
        }
        block_barrier();
#pragma unroll
        for (int group = 0; group < GROUPS; group++) {
            const u32 column = (group * WARPS + warp) * COLUMNS + g * 8;
            if (column - g * 8 >= stride) continue;
#pragma unroll
            for (u32 i = 0; i < 32; i++) sums[group][i / 4][i % 4] *= softmax.shrink[g + i % 4 / 2 * 8];
            mix(sums[group], softmax.high, softmax.low, rows + column, stride, column < stride, left);
        }
    }
    for (int group = 0; group < GROUPS; group++)
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 head = g + i / 2 * 8, column = (group * WARPS + warp) * COLUMNS + (t + i % 2) * 8;
            if (head >= count || column >= stride) continue;
            const float scale = 1.f / softmax.total[head];
            float values[8];
#pragma unroll
            for (u32 j = 0; j < 8; j++) values[j] = sums[group][j][i] * scale;
            store_eight(mixed + own + size_t(head) * stride + column, values);
        }
}

#define FIRST_TOKEN(T)                                                                                              \
    KERNEL(first_token_##T, (const u32* batch, u32 tokens_max, u32 sequences_max, const float* absorbed,            \
                             const T* states, T* mixed, u32 heads, u32 stride)) {                                   \
        SHARED_DYNAMIC(memory);                                                                                     \
        SHARED(Softmax<T>, softmax, 1);                                                                             \
        const Batch in{batch, tokens_max, sequences_max};                                                           \
        if (stride <= STRIDE_MAX / 2) first_token<1>(in, absorbed, states, mixed, heads, stride, memory, *softmax); \
        else first_token<2>(in, absorbed, states, mixed, heads, stride, memory, *softmax);                          \
    }
FIRST_TOKEN(f16)
FIRST_TOKEN(bf16)
