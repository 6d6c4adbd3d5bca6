// One tile of C = A B with f32 accumulators, for sources that are functions: matmul reads matrices, conv
// reads patches.
//
// A source is `T operator()(int64_t row, int64_t k)` (A) or `(int64_t k, int64_t column)` (B) and returns
// zero outside its matrix; a sink is `void operator()(int64_t row, int64_t column, float value)` and ignores
// what is outside. A block of 128 threads makes 64 x 64 of C: on tensor cores for bf16, f16 and tf32 (each warp 32
// x 32), in f32 on the ordinary ones (each thread 8 x 4). Sums run over k in order, whatever the grid.
#pragma once
#include "mma.cuh"

constexpr int TILE = 64, GEMM_THREADS = 128;

// f32: k in slices of 16.
template <class A, class B, class C>
__device__ __forceinline__ void gemm_tile(float, int64_t m0, int64_t n0, int64_t k_first, int64_t k_last,
                                          const A& a, const B& b, const C& c) {
    constexpr int SLICE = 16;
    __shared__ float as[SLICE][TILE + 4], bs[SLICE][TILE + 4];
    int t = threadIdx.x, tx = t % 16, ty = t / 16;
    float acc[8][4] = {};
    for (int64_t k0 = k_first; k0 < k_last; k0 += SLICE) {
#pragma unroll
        for (int i = 0; i < SLICE * TILE / GEMM_THREADS; ++i) {
            int at = t + i * GEMM_THREADS;
            int ak = at % SLICE, am = at / SLICE, bk = at / TILE, bn = at % TILE;
            as[ak][am] = k0 + ak < k_last ? a(m0 + am, k0 + ak) : 0.f;
            bs[bk][bn] = k0 + bk < k_last ? b(k0 + bk, n0 + bn) : 0.f;
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < SLICE; ++k) {
            float x[8], y[4];
#pragma unroll
            for (int i = 0; i < 8; ++i) x[i] = as[k][ty * 8 + i];
#pragma unroll
            for (int j = 0; j < 4; ++j) y[j] = bs[k][tx * 4 + j];
#pragma unroll
            for (int i = 0; i < 8; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) acc[i][j] = fmaf(x[i], y[j], acc[i][j]);
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) c(m0 + ty * 8 + i, n0 + tx * 4 + j, acc[i][j]);
}

// Two neighbouring half-width elements as one register of an mma operand.
template <class T>
__device__ __forceinline__ uint32_t pair(const T* p) {
    return *reinterpret_cast<const uint32_t*>(p);
}

// bf16 and f16: k in slices of 32; rows of both tiles run along k, padded so that the 8 rows of a fragment
// lie in different banks.
template <class T, class A, class B, class C>
__device__ __forceinline__ void gemm_tile(T kind, int64_t m0, int64_t n0, int64_t k_first, int64_t k_last,
                                          const A& a, const B& b, const C& c) {
    constexpr int SLICE = 32, PITCH = SLICE + 8;
    __shared__ __align__(16) T as[TILE][PITCH], bs[TILE][PITCH];
    int t = threadIdx.x, lane = t % 32, warp = t / 32, wm = (warp / 2) * 32, wn = (warp % 2) * 32;
    int row = lane / 4, col = (lane % 4) * 2;
    float acc[2][4][4] = {};
    for (int64_t k0 = k_first; k0 < k_last; k0 += SLICE) {
#pragma unroll 4
        for (int i = 0; i < SLICE * TILE / GEMM_THREADS; ++i) {
            int at = t + i * GEMM_THREADS;
            int ak = at % SLICE, am = at / SLICE, bk = at / TILE, bn = at % TILE;
            as[am][ak] = k0 + ak < k_last ? a(m0 + am, k0 + ak) : store<T>(0.f);
            bs[bn][bk] = k0 + bk < k_last ? b(k0 + bk, n0 + bn) : store<T>(0.f);
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < SLICE; k += 16) {
            uint32_t x[2][4], y[4][2];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const T* p = &as[wm + i * 16 + row][k + col];
                x[i][0] = pair(p), x[i][1] = pair(p + 8 * PITCH), x[i][2] = pair(p + 8),
                x[i][3] = pair(p + 8 * PITCH + 8);
            }
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const T* p = &bs[wn + j * 8 + row][k + col];
                y[j][0] = pair(p), y[j][1] = pair(p + 8);
            }
#pragma unroll
            for (int i = 0; i < 2; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) mma(acc[i][j], x[i], y[j], kind);
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
            for (int q = 0; q < 4; ++q)
                c(m0 + wm + i * 16 + row + (q / 2) * 8, n0 + wn + j * 8 + col + q % 2, acc[i][j][q]);
}

// f32 rounded to TF32: k in slices of 16, rows along k, padded so that the 8 rows of a fragment lie in different banks.
template <class A, class B, class C>
__device__ __forceinline__ void gemm_tile(tf32 kind, int64_t m0, int64_t n0, int64_t k_first, int64_t k_last,
                                          const A& a, const B& b, const C& c) {
    constexpr int SLICE = 16, PITCH = SLICE + 4;
    __shared__ float as[TILE][PITCH], bs[TILE][PITCH];
    int t = threadIdx.x, lane = t % 32, warp = t / 32, wm = (warp / 2) * 32, wn = (warp % 2) * 32;
    int row = lane / 4, col = lane % 4;
    float acc[2][4][4] = {};
    for (int64_t k0 = k_first; k0 < k_last; k0 += SLICE) {
#pragma unroll 4
        for (int i = 0; i < SLICE * TILE / GEMM_THREADS; ++i) {
            int at = t + i * GEMM_THREADS;
            int ak = at % SLICE, am = at / SLICE, bk = at / TILE, bn = at % TILE;
            as[am][ak] = k0 + ak < k_last ? to_tf32(a(m0 + am, k0 + ak)) : 0.f;
            bs[bn][bk] = k0 + bk < k_last ? to_tf32(b(k0 + bk, n0 + bn)) : 0.f;
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < SLICE; k += 8) {
            float x[2][4], y[4][2];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const float* p = &as[wm + i * 16 + row][k + col];
                x[i][0] = p[0], x[i][1] = p[8 * PITCH], x[i][2] = p[4], x[i][3] = p[8 * PITCH + 4];
            }
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float* p = &bs[wn + j * 8 + row][k + col];
                y[j][0] = p[0], y[j][1] = p[4];
            }
#pragma unroll
            for (int i = 0; i < 2; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) mma(acc[i][j], x[i], y[j], kind);
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
            for (int q = 0; q < 4; ++q)
                c(m0 + wm + i * 16 + row + (q / 2) * 8, n0 + wn + j * 8 + col * 2 + q % 2, acc[i][j][q]);
}

// In the order of `Act` in src/cpu/gemm.
enum Activation { NONE, RELU, SIGMOID, TANH, SILU };

__device__ __forceinline__ float activate(int act, float x) {
    switch (act) {
        case RELU: return x > 0.f ? x : 0.f;
        case SIGMOID: return sigmoid(x);
        case TANH: return tanhf(x);
        case SILU: return x * sigmoid(x);
    }
    return x;
}
