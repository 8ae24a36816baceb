// The kernels and a plain matrix product as a CPU library, for tests.
//
//     c++ -std=c++20 -O2 -shared -fPIC -DPODIUM_SHIM kernels/shim.cpp -o libkernels.so
#include "kernels.cu"

static_assert(sizeof(f16) == 2 && sizeof(bf16) == 2);

static u32 bits_of(float x) { u32 y; std::memcpy(&y, &x, 4); return y; }
static float float_of(u32 x) { float y; std::memcpy(&y, &x, 4); return y; }

float to_float(bf16 x) { return float_of(u32(x.bits) << 16); }
float to_float(f16 x) {
    const u32 sign = u32(x.bits & 0x8000) << 16, exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
    if (exponent == 0) return float_of(sign | bits_of(float(fraction) * 0x1p-24f));
    if (exponent == 31) return float_of(sign | 0x7f800000 | fraction << 13);
    return float_of(sign | (exponent + 112) << 23 | fraction << 13);
}
// Round to nearest, ties to even: adds half a unit in the last place (slightly less if the kept part is even), then truncates.
void round_to(bf16& y, float x) {
    const u32 bits = bits_of(x);
    y.bits = std::isnan(x) ? u16(0x7fff) : u16((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
void round_to(f16& y, float x) {
    const u32 bits = bits_of(x), sign = bits >> 16 & 0x8000;
    const float size = std::fabs(x);
    if (std::isnan(x)) y.bits = 0x7fff;
    else if (size >= 65520.f) y.bits = u16(sign | 0x7c00);
    else if (size < 0x1p-14f) y.bits = u16(sign | u32(std::nearbyint(size * 0x1p24f)));
    else y.bits = u16(sign | ((bits_of(size) - (112u << 23) + 0xfff + (bits >> 13 & 1)) >> 13));
}
template <class T> static u32 pack_as(float low, float high) {
    return rounded<T>(low).bits | u32(rounded<T>(high).bits) << 16;
}
u32 pack(f16, float low, float high) { return pack_as<f16>(low, high); }
u32 pack(bf16, float low, float high) { return pack_as<bf16>(low, high); }
float to_float(e4m3 x) {
    const u32 sign = u32(x.bits & 0x80) << 24, exponent = x.bits >> 3 & 15, fraction = x.bits & 7;
    if ((x.bits & 0x7f) == 0x7f) return NAN;
    if (exponent == 0) return float_of(sign | bits_of(float(fraction) * 0x1p-9f));
    return float_of(sign | (exponent + 120) << 23 | fraction << 20);
}
void round_to(e4m3& y, float x) {
    const u32 bits = bits_of(x), sign = bits >> 24 & 0x80;
    const float size = std::fabs(x);
    if (std::isnan(x)) y.bits = 0x7f;
    else if (size >= 448.f) y.bits = u16(sign | 0x7e);
    else if (size < 0x1p-6f) y.bits = u16(sign | u32(std::nearbyint(size * 0x1p9f)));
    else y.bits = u16(sign | ((bits_of(size) - (120u << 23) + 0x7ffff + (bits >> 20 & 1)) >> 20));
}
u32 pack(e4m3, float low, float high) { return rounded<e4m3>(low).bits | u32(rounded<e4m3>(high).bits) << 8; }

extern "C" void shim_reverse(u32 is_reversed) { shim::is_reversed = is_reversed; }

// Mirrors `ops::cuda::Product`; sums in f32.
struct Product {
    uint64_t x, w, y, bias, x_scale, w_scale;
    uint64_t rows, outputs, inputs;
    uint64_t x_stride, w_stride, y_stride;
    uint64_t count, x_step, w_step, y_step;
    u32 is_input_major, is_output_f32;
};
// x and w have type X; y (unless f32) and the bias have type T.
template <class X, class T> static void multiply(const Product& p) {
    const float scale = p.x_scale ? *reinterpret_cast<float*>(p.x_scale) * *reinterpret_cast<float*>(p.w_scale) : 1.f;
    const T* bias = reinterpret_cast<const T*>(p.bias);
    for (uint64_t part = 0; part < p.count; part++) {
        const X* x = reinterpret_cast<const X*>(p.x) + part * p.x_step;
        const X* w = reinterpret_cast<const X*>(p.w) + part * p.w_step;
        for (uint64_t row = 0; row < p.rows; row++)
            for (uint64_t output = 0; output < p.outputs; output++) {
                float sum = 0.f;
                for (uint64_t input = 0; input < p.inputs; input++) {
                    const X weight = p.is_input_major ? w[input * p.w_stride + output] : w[output * p.w_stride + input];
                    sum += to_float(x[row * p.x_stride + input]) * to_float(weight);
                }
                sum *= scale;
                if (bias) sum += to_float(bias[output]);
                const uint64_t place = part * p.y_step + row * p.y_stride + output;
                if (p.is_output_f32) reinterpret_cast<float*>(p.y)[place] = sum;
                else reinterpret_cast<T*>(p.y)[place] = rounded<T>(sum);
            }
    }
}
template <class T> static void multiply_as(const Product& p) { p.x_scale ? multiply<e4m3, T>(p) : multiply<T, T>(p); }
extern "C" void shim_multiply_f16(const Product* product) { multiply_as<f16>(*product); }
extern "C" void shim_multiply_bf16(const Product* product) { multiply_as<bf16>(*product); }
