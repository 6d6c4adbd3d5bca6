// C = act(op(A) op(B) + bias), batched: A (batch, m, k) or its transpose, B (batch, k, n) or its transpose,
// bias (n) or null. Bytes: m k + k n + m n elements; flops: 2 m n k. Bound: tensor cores for bf16, f16 and tf32
// (SASS: HMMA), FMA for f32.
//
// bf16 and f16 whose rows are multiples of 16 bytes take the tiles of wide.cuh. A tile of M x N reads (M + N) 2 bytes per
// 2 M N flops of each k: 85 flops to a byte of L2 for 128 x 256, 64 for 128 x 128, 32 for 64 x 64; where L2 gives 5 TB/s,
// 427, 320 and 160 TFLOP/s at most.
#include "gemm.cuh"
#include "product.cuh"
#include "wide.cuh"

template <class Kind, class T>
__device__ void matmul(T* c, const T* a, const T* b, const T* bias, const Product& p) {
    const T* x = a + blockIdx.z * p.a_batch;
    const T* y = b + blockIdx.z * p.b_batch;
    T* z = c + blockIdx.z * p.m * p.n;
    auto left = [&](int64_t i, int64_t k) {
        return i < p.m ? x[p.transpose_a ? k * p.m + i : i * p.k + k] : store<T>(0.f);
    };
    auto right = [&](int64_t k, int64_t j) {
        return j < p.n ? y[p.transpose_b ? j * p.k + k : k * p.n + j] : store<T>(0.f);
    };
    auto sink = [&](int64_t i, int64_t j, float v) {
        if (i < p.m && j < p.n) z[i * p.n + j] = store<T>(activate(p.act, bias ? v + load(bias[j]) : v));
    };
    gemm_tile(Kind(), (int64_t)blockIdx.x * TILE, (int64_t)blockIdx.y * TILE, 0, p.k, left, right, sink);
}

template <template <class> class Tile, class T>
__device__ __forceinline__ void wide(T* c, const T* a, const T* b, const T* bias, const Product& p) {
    DYN_SHARED(T, shared);
    Tile<T> tile(shared, p.m, p.n);
    const T* x = a + blockIdx.z * p.a_batch;
    const T* y = b + blockIdx.z * p.b_batch;
    const Matrix<T, ALONG_K> rows_x = {x, p.m, p.k}, rows_y = {y, p.n, p.k};
    const Matrix<T, ALONG_ROWS> columns_x = {x, p.m, p.m}, columns_y = {y, p.n, p.n};
    if (p.transpose_a && p.transpose_b) tile.run(columns_x, rows_y, 0, (int)p.k);
    else if (p.transpose_a) tile.run(columns_x, columns_y, 0, (int)p.k);
    else if (p.transpose_b) tile.run(rows_x, rows_y, 0, (int)p.k);
    else tile.run(rows_x, columns_y, 0, (int)p.k);
    T* z = c + blockIdx.z * p.m * p.n;
    tile.put(p.m, p.n, [&](int64_t i, int64_t j, const Vec<float, 8>& sums) {
        Vec<float, 8> v = bias ? widened(bias + j) : Vec<float, 8>{};
#pragma unroll
        for (int q = 0; q < 8; ++q) v.v[q] = activate(p.act, sums.v[q] + v.v[q]);
        store_rounded(z + i * p.n + j, v);
    });
}

extern "C" __global__ void __launch_bounds__(128)
    matmul_f32(float* c, const float* a, const float* b, const float* bias, Product p) {
    matmul<float>(c, a, b, bias, p);
}
extern "C" __global__ void __launch_bounds__(128)
    matmul_tf32(float* c, const float* a, const float* b, const float* bias, Product p) {
    matmul<tf32>(c, a, b, bias, p);
}
extern "C" __global__ void __launch_bounds__(128)
    matmul_bf16(bf16* c, const bf16* a, const bf16* b, const bf16* bias, Product p) {
    matmul<bf16>(c, a, b, bias, p);
}
extern "C" __global__ void __launch_bounds__(128)
    matmul_f16(f16* c, const f16* a, const f16* b, const f16* bias, Product p) {
    matmul<f16>(c, a, b, bias, p);
}
extern "C" __global__ void __launch_bounds__(256, 1)
    matmul_128x256_bf16(bf16* c, const bf16* a, const bf16* b, const bf16* bias, Product p) {
    wide<Tile128x256>(c, a, b, bias, p);
}
extern "C" __global__ void __launch_bounds__(256, 1)
    matmul_128x256_f16(f16* c, const f16* a, const f16* b, const f16* bias, Product p) {
    wide<Tile128x256>(c, a, b, bias, p);
}
extern "C" __global__ void __launch_bounds__(128, 2)
    matmul_128x128_bf16(bf16* c, const bf16* a, const bf16* b, const bf16* bias, Product p) {
    wide<Tile128x128>(c, a, b, bias, p);
}
extern "C" __global__ void __launch_bounds__(128, 2)
    matmul_128x128_f16(f16* c, const f16* a, const f16* b, const f16* bias, Product p) {
    wide<Tile128x128>(c, a, b, bias, p);
}
extern "C" __global__ void __launch_bounds__(128, 4)
    matmul_64x64_bf16(bf16* c, const bf16* a, const bf16* b, const bf16* bias, Product p) {
    wide<Tile64x64>(c, a, b, bias, p);
}
extern "C" __global__ void __launch_bounds__(128, 4)
    matmul_64x64_f16(f16* c, const f16* a, const f16* b, const f16* bias, Product p) {
    wide<Tile64x64>(c, a, b, bias, p);
}
