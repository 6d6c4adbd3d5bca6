// Element types and 16-byte packs: what src/tensor/elem.rs is for Rust. Included by every kernel file.
//
// The same files compile with nvcc and, through kernels/emulator/, with the host's C++ compiler. So kernels
// are plain CUDA: no cooperative groups, no libcu++, inline PTX only in small functions that have a twin for
// the host.
#pragma once
#include <cstdint>
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
// Dynamic shared memory as `T* name`.
#define DYN_SHARED(T, name)                                            \
    extern __shared__ __align__(128) unsigned char dyn_shared_bytes[]; \
    T* name = reinterpret_cast<T*>(dyn_shared_bytes)
#else
#include "cuda_cpu.h"
#endif

using bf16 = __nv_bfloat16;
using f16 = __half;

// Stored values are widened to f32, calculated with, and rounded once.
__device__ __forceinline__ float load(float x) { return x; }
__device__ __forceinline__ float load(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float load(f16 x) { return __half2float(x); }

template <class T>
__device__ __forceinline__ T store(float x);
template <>
__device__ __forceinline__ float store<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ bf16 store<bf16>(float x) {
    return __float2bfloat16(x);
}
template <>
__device__ __forceinline__ f16 store<f16>(float x) {
    return __float2half(x);
}

// 16 bytes of elements. Every tensor starts at a multiple of 256 bytes, so element i * WIDTH is aligned.
template <class T>
struct alignas(16) Pack {
    static constexpr int WIDTH = 16 / sizeof(T);
    T v[WIDTH];
};

// Elements [at, at + WIDTH) of p, as many as there are below n; the rest of the pack is zero.
template <class T>
__device__ __forceinline__ Pack<T> load_pack(const T* p, int64_t at, int64_t n) {
    if (at + Pack<T>::WIDTH <= n) return *reinterpret_cast<const Pack<T>*>(p + at);
    Pack<T> pack = {};
#pragma unroll
    for (int i = 0; i < Pack<T>::WIDTH; ++i)
        if (at + i < n) pack.v[i] = p[at + i];
    return pack;
}

template <class T>
__device__ __forceinline__ void store_pack(T* p, int64_t at, int64_t n, const Pack<T>& pack) {
    if (at + Pack<T>::WIDTH <= n) {
        *reinterpret_cast<Pack<T>*>(p + at) = pack;
        return;
    }
#pragma unroll
    for (int i = 0; i < Pack<T>::WIDTH; ++i)
        if (at + i < n) p[at + i] = pack.v[i];
}

// The number of this thread in a grid of one dimension, and the first element of its pack.
__device__ __forceinline__ int64_t global_thread() { return (int64_t)blockIdx.x * blockDim.x + threadIdx.x; }
template <class T>
__device__ __forceinline__ int64_t first_element() {
    return global_thread() * Pack<T>::WIDTH;
}

// Functions with the definitions of src/tensor/elem.rs.
__device__ __forceinline__ float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }
__device__ __forceinline__ float softplus(float x) { return fmaxf(x, 0.f) + log1pf(expf(-fabsf(x))); }
