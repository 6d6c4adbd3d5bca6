#pragma once
#include "cuda_cpu.h"
struct __align__(2) __half { uint16_t x; };
struct __align__(4) __half2 { __half x, y; };
inline float __half2float(__half h) {  // exact
    uint32_t s = (uint32_t)(h.x & 0x8000) << 16, e = h.x >> 10 & 31, m = h.x & 0x3ff;
    if (e == 31) return __uint_as_float(s | 0x7f800000 | m << 13);
    if (e == 0) {
        float f = (float)m * 5.9604644775390625e-8f;
        return s ? -f : f;
    }
    return __uint_as_float(s | (e + 112) << 23 | m << 13);
}
inline __half __float2half(float f) {  // round to nearest even
    uint32_t u = __float_as_uint(f), s = u >> 16 & 0x8000;
    u &= 0x7fffffff;
    if (u > 0x7f800000) return {0x7fff};
    if (u >= 0x477ff000) return {(uint16_t)(s | 0x7c00)};
    if (u < 0x38800000) {
        float d = __uint_as_float(u) + 0.5f;
        return {(uint16_t)(s | (__float_as_uint(d) - 0x3f000000))};
    }  // 2^-24 ulps of 0.5f
    u += 0xfff + (u >> 13 & 1);
    return {(uint16_t)(s | (u - 0x38000000) >> 13)};
}
inline __half __float2half_rn(float f) { return __float2half(f); }
