// Functions of src/cpu/math.rs with the same bits: every product and sum is rounded once where it is rounded there, so
// that random numbers do not depend on the device. Where bits do not matter, kernels use the library's functions.
#pragma once
#include "elem.cuh"

namespace exact {

constexpr float LN2_HI = 0.69314575f, LN2_LO = 1.4286068e-6f;

__device__ __forceinline__ float mul(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float add(float a, float b) { return __fadd_rn(a, b); }

// 2^n for -126 <= n <= 127.
__device__ __forceinline__ float pow2(int n) { return __uint_as_float((uint32_t)(n + 127) << 23); }

// e^x.
__device__ __forceinline__ float exp(float x) {
    constexpr float ROUND = 12582912.f;
    x = x < -104.f ? -104.f : x;
    x = x > 89.f ? 89.f : x;
    const float shifted = fmaf(x, 1.442695041f, ROUND), n = add(shifted, -ROUND);
    const float r = fmaf(n, -LN2_LO, fmaf(n, -LN2_HI, x));
    float q = fmaf(1.393379e-3f, r, 8.366716e-3f);
    q = fmaf(q, r, 4.1666478e-2f);
    q = fmaf(q, r, 1.6666542e-1f);
    q = fmaf(q, r, 0.5f);
    const float p = fmaf(mul(r, r), q, r);
    const int k = (int)(__float_as_uint(shifted) - __float_as_uint(ROUND)), half = k >> 1;
    return mul(mul(add(p, 1.f), pow2(half)), pow2(k - half));
}

// ln(2^k (1 + f)) for |f| <= 1/3.
__device__ __forceinline__ float ln_split(float k, float f) {
    float p = fmaf(-0.131809f, f, 0.13961983f);
    p = fmaf(p, f, -0.12117623f);
    p = fmaf(p, f, 0.14011037f);
    p = fmaf(p, f, -0.16685282f);
    p = fmaf(p, f, 0.20010035f);
    p = fmaf(p, f, -0.24999693f);
    p = fmaf(p, f, 0.33333224f);
    const float tail = mul(fmaf(p, f, -0.5f), mul(f, f));
    return fmaf(k, LN2_HI, add(f, fmaf(k, LN2_LO, tail)));
}

// -ln((w + 1/2) / 2^32): exponential with mean 1.
__device__ __forceinline__ float exponential(uint32_t w) {
    constexpr float UNIT = 1.f / 4294967296.f;
    constexpr int TWO_THIRDS = 0x3F2AAAAB;
    const int above = (int)__float_as_uint(mul(add((float)w, 0.5f), UNIT)) - TWO_THIRDS;
    const float m = __uint_as_float((uint32_t)((above & 0x007FFFFF) + TWO_THIRDS));
    // Near 1 the distance to 1 is an exact function of the word.
    if (w >= 0xB0000000u) return -ln_split(0.f, mul(add((float)~w, 0.5f), -UNIT));
    return -ln_split((float)(above >> 23), add(m, -1.f));
}

// sin and cos of 2 pi w / 2^32: the nearest quarter turn and the rest are exact in integers.
__device__ __forceinline__ void sin_cos_turns(uint32_t w, float& sin, float& cos) {
    const uint32_t quarter = (w + 0x20000000u) >> 30;
    const float x = mul((float)(int)(w - (quarter << 30)), 6.283185307f / 4294967296.f), z = mul(x, x);
    const float s = fmaf(fmaf(-1.9515296e-4f, z, 8.332161e-3f), z, -1.6666655e-1f);
    const float c = fmaf(fmaf(2.4433157e-5f, z, -1.3887316e-3f), z, 4.1666646e-2f);
    const float a = fmaf(mul(s, z), x, x), b = fmaf(mul(c, z), z, fmaf(z, -0.5f, 1.f));
    sin = quarter & 1 ? b : a;
    cos = quarter & 1 ? a : b;
    sin = quarter >> 1 ? -sin : sin;
    cos = (quarter ^ quarter >> 1) & 1 ? -cos : cos;
}

}  // namespace exact

// Two independent standard normal values (Box & Muller 1958).
__device__ __forceinline__ void normal_pair(uint32_t w0, uint32_t w1, float& first, float& second) {
    const float radius = __fsqrt_rn(exact::mul(2.f, exact::exponential(w0)));
    float sin, cos;
    exact::sin_cos_turns(w1, sin, cos);
    first = exact::mul(radius, cos);
    second = exact::mul(radius, sin);
}
