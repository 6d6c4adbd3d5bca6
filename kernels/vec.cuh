// Short vectors of any width, and sums over parts of a warp.
#pragma once
#include "block.cuh"

// V neighbouring elements (V a power of two, 16 bytes at most), aligned to their size: for rows whose length 16 bytes
// do not divide.
template <class T, int V>
struct __align__(sizeof(T) * V) Vec {
    T v[V];
};

template <int V, class T>
__device__ __forceinline__ Vec<T, V> load_vec(const T* p) {
    return *reinterpret_cast<const Vec<T, V>*>(p);
}

template <int V, class T>
__device__ __forceinline__ void store_vec(T* p, const Vec<T, V>& vec) {
    *reinterpret_cast<Vec<T, V>*>(p) = vec;
}

template <int V, class T>
__device__ __forceinline__ Vec<T, V> zero_vec() {
    Vec<T, V> z;
#pragma unroll
    for (int i = 0; i < V; ++i) z.v[i] = store<T>(0.f);
    return z;
}

// Σ over `width` neighbouring lanes (a power of two up to 32), in every one of them. All lanes of the warp call it.
__device__ __forceinline__ float lanes_sum(float v, int width) {
    for (int o = width / 2; o > 0; o >>= 1) v += __shfl_xor_sync(0xffffffffu, v, o);
    return v;
}
