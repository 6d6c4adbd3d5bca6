// C = act(op(A) op(B) + bias), batched: A (batch, m, k) or its transpose, B (batch, k, n) or its transpose,
// bias (n) or null. Bytes: m k + k n + m n elements; flops: 2 m n k. Bound: tensor cores for bf16, f16 and tf32
// (SASS: HMMA), FMA for f32.
#include "gemm.cuh"

struct Product {
    int64_t m, n, k, a_batch, b_batch;
    int transpose_a, transpose_b, act, pad;
};

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
