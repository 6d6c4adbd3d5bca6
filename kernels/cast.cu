// Conversion between dtypes: rounded to nearest; to integers towards zero, saturating, NaN to 0.
// Bytes: one read, one write per element; no flops. Bound: memory.
#include "elem.cuh"

__device__ __forceinline__ float load(unsigned char x) { return (float)x; }
__device__ __forceinline__ float load(int x) { return (float)x; }
template <>
__device__ __forceinline__ unsigned char store<unsigned char>(float x) {
    return x >= 255.f ? 255 : x > 0.f ? (unsigned char)x : 0;
}
template <>
__device__ __forceinline__ int store<int>(float x) {
    return x >= 2147483648.f ? 2147483647 : x <= -2147483648.f ? -2147483647 - 1 : x == x ? (int)x : 0;
}

template <class S, class D>
__device__ void cast(D* y, const S* x, int64_t n) {
    int64_t at = 4 * global_thread();
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (at + i < n) y[at + i] = store<D>(load(x[at + i]));
}

extern "C" __global__ void cast_f32_bf16(bf16* y, const float* x, int64_t n) { cast(y, x, n); }
extern "C" __global__ void cast_f32_f16(f16* y, const float* x, int64_t n) { cast(y, x, n); }
extern "C" __global__ void cast_f32_u8(unsigned char* y, const float* x, int64_t n) { cast(y, x, n); }
extern "C" __global__ void cast_f32_i32(int* y, const float* x, int64_t n) { cast(y, x, n); }
extern "C" __global__ void cast_bf16_f32(float* y, const bf16* x, int64_t n) { cast(y, x, n); }
extern "C" __global__ void cast_f16_f32(float* y, const f16* x, int64_t n) { cast(y, x, n); }
extern "C" __global__ void cast_u8_f32(float* y, const unsigned char* x, int64_t n) { cast(y, x, n); }
extern "C" __global__ void cast_i32_f32(float* y, const int* x, int64_t n) { cast(y, x, n); }
extern "C" __global__ void cast_u8_i32(int* y, const unsigned char* x, int64_t n) { cast(y, x, n); }
