// Runs a block of CUDA threads on the CPU, to test the kernels' source without a GPU: one fiber per thread, one block after
// the other, tensor-core instructions by their documented layout.
//
// Shared memory is filled with NaN when a block starts. Warps run one after the other, each up to its next block barrier:
// first to last with asynchronous copies as late as allowed, or (`shim_reverse`) last to first with copies at once. A
// missing barrier gives a wrong result in one of the two orders. A barrier that only some threads reach aborts. Not covered:
// races between blocks, caches, speed, and internal rounding of instructions.
#pragma once
#include <setjmp.h>
#include <ucontext.h>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <utility>
#include <vector>

typedef uint32_t u32;
typedef uint16_t u16;
struct f16;
struct bf16;
struct e4m3;
struct Index { u32 x = 1, y = 1, z = 1; };

// Defines a kernel, and the entry point `shim_NAME` that runs it. The entry point takes the shape (blocks in x and y,
// threads, bytes of shared memory) and pointers to the arguments.
#define KERNEL(name, parameters)                                                                       \
    static void name parameters;                                                                       \
    extern "C" void shim_##name(const u32* shape, void** places) { shim::run(name, shape, places); }   \
    static void name parameters
#define INLINE inline
#define SHARED(T, name, count)                                        \
    alignas(16) static T name[count];                                 \
    static uint64_t name##_block = 0;                                 \
    if (name##_block != shim::block) {                                \
        name##_block = shim::block;                                   \
        std::memset(static_cast<void*>(name), 0xff, sizeof name);     \
    }
#define SHARED_DYNAMIC(name) float* name = reinterpret_cast<float*>(shim::dynamic.data())

using std::min;

namespace shim {
enum class State { READY, AT_WARP, AT_BLOCK, ENDED };
struct Copy {
    void* to;
    const void* from;
    bool clear;
    void run() const { clear ? std::memset(to, 0, 16) : std::memcpy(to, from, 16); }
};
struct Fiber {
    ucontext_t start;
    jmp_buf place;
    bool is_started;
    State state;
    std::vector<char> stack;
    // Groups of copies that have started; the last group is still open.
    std::deque<std::vector<Copy>> copies;
};
inline Index grid_size, block_size, block_index;
inline uint64_t block = 0;
inline std::vector<uint64_t> dynamic;
inline std::vector<Fiber> fibers;
inline u32 current;
inline jmp_buf scheduler;
inline std::function<void()> body;
inline bool is_reversed = false;

// The value that a lane passes to the other lanes of its warp.
union Shown { float number; u32 words[6]; const void* address; };
inline std::vector<Shown> shown;

inline void wait(State state) {
    fibers[current].state = state;
    if (_setjmp(fibers[current].place) == 0) _longjmp(scheduler, 1);
}
inline void enter() {
    body();
    fibers[current].state = State::ENDED;
    _longjmp(scheduler, 1);
}
inline void resume(u32 thread) {
    current = thread;
    Fiber& fiber = fibers[thread];
    if (_setjmp(scheduler) != 0) return;
    if (fiber.is_started) _longjmp(fiber.place, 1);
    fiber.is_started = true;
    setcontext(&fiber.start);
}
// Releases the threads `first..end` from the barrier `state` if all that have not ended wait at it; returns whether any did.
inline bool release(u32 first, u32 end, State state) {
    bool any = false;
    for (u32 thread = first; thread < end; thread++) {
        if (fibers[thread].state == State::READY) return false;
        if (fibers[thread].state != State::ENDED && fibers[thread].state != state) return false;
        any |= fibers[thread].state == state;
    }
    for (u32 thread = first; thread < end; thread++)
        if (fibers[thread].state == state) fibers[thread].state = State::READY;
    return any;
}
// Runs a warp until all its threads have ended or wait at a block barrier.
inline void run_warp(u32 warp, u32 threads) {
    const u32 first = warp * 32, end = min(first + 32, threads);
    do {
        for (u32 i = first; i < end; i++) {
            const u32 thread = is_reversed ? end - 1 - (i - first) : i;
            if (fibers[thread].state == State::READY) resume(thread);
        }
    } while (release(first, end, State::AT_WARP));
}
inline void run_block() {
    const u32 threads = block_size.x;
    block++;
    std::memset(dynamic.data(), 0xff, dynamic.size() * sizeof dynamic[0]);
    for (u32 thread = 0; thread < threads; thread++) {
        Fiber& fiber = fibers[thread];
        fiber.stack.resize(64 << 10);
        getcontext(&fiber.start);
        fiber.start.uc_stack.ss_sp = fiber.stack.data();
        fiber.start.uc_stack.ss_size = fiber.stack.size();
        fiber.start.uc_link = nullptr;
        makecontext(&fiber.start, enter, 0);
        fiber.is_started = false;
        fiber.copies.assign(1, {});
        fiber.state = State::READY;
    }
    const u32 warps = (threads + 31) / 32;
    for (;;) {
        for (u32 i = 0; i < warps; i++) run_warp(is_reversed ? warps - 1 - i : i, threads);
        if (release(0, threads, State::AT_BLOCK)) continue;
        for (const Fiber& fiber : fibers) {
            if (fiber.state == State::AT_WARP || fiber.state == State::AT_BLOCK) {
                fprintf(stderr, "a barrier is not reached by all of block %u, %u\n", block_index.x, block_index.y);
                abort();
            }
        }
        return;
    }
}
inline void launch(Index grid, u32 threads, size_t shared_bytes, std::function<void()> kernel) {
    body = std::move(kernel);
    grid_size = grid;
    block_size = {threads};
    dynamic.resize((shared_bytes + 7) / 8);
    fibers.resize(threads);
    shown.resize(threads);
    for (block_index.y = 0; block_index.y < grid.y; block_index.y++)
        for (block_index.x = 0; block_index.x < grid.x; block_index.x++) run_block();
}
template <class... A, size_t... I>
void call(void (*kernel)(A...), void** places, std::index_sequence<I...>) {
    kernel(*static_cast<A*>(places[I])...);
}
template <class... A>
void run(void (*kernel)(A...), const u32* shape, void** places) {
    launch({shape[0], shape[1]}, shape[2], shape[3],
           [&] { call(kernel, places, std::make_index_sequence<sizeof...(A)>()); });
}
// Publishes this lane's value and calls `read` with the values of all lanes of the warp.
template <class F> auto exchange(Shown own, F read) {
    shown[current] = own;
    wait(State::AT_WARP);
    auto result = read(&shown[current & ~31u]);
    wait(State::AT_WARP);
    return result;
}
}  // namespace shim

#define threadIdx (Index{shim::current, 0, 0})
#define blockIdx shim::block_index
#define blockDim shim::block_size
#define gridDim shim::grid_size

float to_float(f16 x);
float to_float(bf16 x);
void round_to(f16& y, float x);
void round_to(bf16& y, float x);
u32 pack(f16, float low, float high);
u32 pack(bf16, float low, float high);
u32 pack(e4m3, float low, float high);

inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }
inline float exp2_fast(float x) { return exp2f(x); }
inline void block_barrier() { shim::wait(shim::State::AT_BLOCK); }
inline void warp_barrier() { shim::wait(shim::State::AT_WARP); }
inline float from_lane(float x, u32 lane) {
    return shim::exchange({.number = x}, [&](const shim::Shown* warp) { return warp[lane].number; });
}
inline float from_lane_xor(float x, u32 mask) { return from_lane(x, (shim::current & 31) ^ mask); }

template <class T> void mma(T, float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    const u32 lane = shim::current & 31;
    shim::Shown own = {.words = {a[0], a[1], a[2], a[3], b0, b1}};
    shim::exchange(own, [&](const shim::Shown* warp) {
        auto half = [](u32 word, u32 odd) { return to_float(T{u16(odd ? word >> 16 : word)}); };
        auto left = [&](u32 row, u32 k) {
            return half(warp[row % 8 * 4 + k % 8 / 2].words[(row >= 8) + 2 * (k >= 8)], k % 2);
        };
        auto right = [&](u32 k, u32 column) { return half(warp[column * 4 + k % 8 / 2].words[4 + (k >= 8)], k % 2); };
        for (u32 i = 0; i < 4; i++) {
            const u32 row = lane / 4 + 8 * (i >= 2), column = lane % 4 * 2 + i % 2;
            for (u32 k = 0; k < 16; k++) d[i] += left(row, k) * right(k, column);
        }
        return 0;
    });
}
inline void load_matrices_at(u32 (&m)[4], const void* row, bool is_transposed) {
    const u32 lane = shim::current & 31;
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) fprintf(stderr, "a matrix row is not aligned\n"), abort();
    shim::exchange({.address = row}, [&](const shim::Shown* warp) {
        for (u32 i = 0; i < 4; i++) {
            auto at = [&](u32 row, u32 column) {
                return u32(static_cast<const u16*>(warp[8 * i + row].address)[column]);
            };
            const u32 a = lane / 4, b = lane % 4 * 2;
            m[i] = is_transposed ? at(b, a) | at(b + 1, a) << 16 : at(a, b) | at(a, b + 1) << 16;
        }
        return 0;
    });
}
inline void load_matrices(u32 (&m)[4], const void* row) { load_matrices_at(m, row, false); }
inline void load_matrices_transposed(u32 (&m)[4], const void* row) { load_matrices_at(m, row, true); }
inline void copy_async(void* to, const void* from, bool clear) {
    if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % 16 != 0)
        fprintf(stderr, "a copy is not aligned\n"), abort();
    const shim::Copy copy = {to, from, clear};
    if (shim::is_reversed) copy.run();
    else shim::fibers[shim::current].copies.back().push_back(copy);
}
inline void copies_commit() { shim::fibers[shim::current].copies.emplace_back(); }
template <int pending> void copies_wait() {
    auto& groups = shim::fibers[shim::current].copies;
    for (; groups.size() > pending + 1; groups.pop_front())
        for (const shim::Copy& copy : groups.front()) copy.run();
}
