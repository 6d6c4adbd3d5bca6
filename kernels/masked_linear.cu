// Affine maps with a staircase mask, y = act(x (W o M) + bias): output j reads the first reach[j] inputs, reach not
// decreasing, and the gradients of x and W (src/ops/masked_linear.rs). A tile of 64 x 64 sums over the inputs that its
// last column reads (forward), the outputs that read its first row (input gradient), or is zero without a look at the
// data where nothing is read (weight gradient).
// Bytes: one pass over x, W, y; 2 M sum(reach) flops, up to the corner of a tile. Bound: tensor cores for bf16 and f16
// (SASS: HMMA), FMA for f32; for a few rows, the bytes of W.
#include "gemm.cuh"

namespace {

// The first output that reads input i: reach is sorted.
__device__ __forceinline__ int first_reader(const int* reach, int n, int i) {
    int low = 0, high = n;
    while (low < high) {
        const int middle = (low + high) / 2;
        if (reach[middle] <= i) low = middle + 1;
        else high = middle;
    }
    return low;
}

template <class Kind, class T>
__device__ void forward(T* y, const T* x, const T* w, const T* bias, const int* reach, int64_t m, int k, int n, int act) {
    const int64_t m0 = (int64_t)blockIdx.x * TILE, n0 = (int64_t)blockIdx.y * TILE;
    auto left = [&](int64_t i, int64_t c) { return i < m ? x[i * k + c] : store<T>(0.f); };
    auto right = [&](int64_t c, int64_t j) { return j < n && c < reach[j] ? w[c * n + j] : store<T>(0.f); };
    auto sink = [&](int64_t i, int64_t j, float v) {
        if (i < m && j < n) y[i * n + j] = store<T>(activate(act, v + load(bias[j])));
    };
    const int64_t last = n0 + TILE < n ? n0 + TILE : n;
    gemm_tile(Kind(), m0, n0, 0, reach[last - 1], left, right, sink);
}

// dx (m, k) = g (m, n) (W o M)^T.
template <class Kind, class T>
__device__ void input(T* dx, const T* g, const T* w, const int* reach, int64_t m, int k, int n) {
    const int64_t m0 = (int64_t)blockIdx.x * TILE, k0 = (int64_t)blockIdx.y * TILE;
    auto left = [&](int64_t i, int64_t j) { return i < m ? g[i * n + j] : store<T>(0.f); };
    auto right = [&](int64_t j, int64_t c) { return c < k && c < reach[j] ? w[c * n + j] : store<T>(0.f); };
    auto sink = [&](int64_t i, int64_t c, float v) {
        if (i < m && c < k) dx[i * k + c] = store<T>(v);
    };
    gemm_tile(Kind(), m0, k0, first_reader(reach, n, (int)k0), n, left, right, sink);
}

// dW (k, n) = (x^T g) o M.
template <class Kind, class T>
__device__ void weight(T* dw, const T* x, const T* g, const int* reach, int64_t m, int k, int n) {
    const int64_t k0 = (int64_t)blockIdx.x * TILE, n0 = (int64_t)blockIdx.y * TILE;
    auto left = [&](int64_t c, int64_t r) { return c < k ? x[r * k + c] : store<T>(0.f); };
    auto right = [&](int64_t r, int64_t j) { return j < n ? g[r * n + j] : store<T>(0.f); };
    auto sink = [&](int64_t c, int64_t j, float v) {
        if (c < k && j < n) dw[c * n + j] = store<T>(c < reach[j] ? v : 0.f);
    };
    const int64_t last = n0 + TILE < n ? n0 + TILE : n;
    gemm_tile(Kind(), k0, n0, 0, reach[last - 1] > k0 ? m : 0, left, right, sink);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(128) masked_linear_forward_f32(float* y, const float* x, const float* w,
        const float* bias, const int* reach, int64_t m, int k, int n, int act) {
    forward<float>(y, x, w, bias, reach, m, k, n, act);
}
extern "C" __global__ void __launch_bounds__(128) masked_linear_forward_tf32(float* y, const float* x, const float* w,
        const float* bias, const int* reach, int64_t m, int k, int n, int act) {
    forward<tf32>(y, x, w, bias, reach, m, k, n, act);
}
extern "C" __global__ void __launch_bounds__(128) masked_linear_forward_bf16(bf16* y, const bf16* x, const bf16* w,
        const bf16* bias, const int* reach, int64_t m, int k, int n, int act) {
    forward<bf16>(y, x, w, bias, reach, m, k, n, act);
}
extern "C" __global__ void __launch_bounds__(128) masked_linear_forward_f16(f16* y, const f16* x, const f16* w,
        const f16* bias, const int* reach, int64_t m, int k, int n, int act) {
    forward<f16>(y, x, w, bias, reach, m, k, n, act);
}

extern "C" __global__ void __launch_bounds__(128) masked_linear_input_f32(float* dx, const float* g, const float* w,
        const int* reach, int64_t m, int k, int n) {
    input<float>(dx, g, w, reach, m, k, n);
}
extern "C" __global__ void __launch_bounds__(128) masked_linear_input_tf32(float* dx, const float* g, const float* w,
        const int* reach, int64_t m, int k, int n) {
    input<tf32>(dx, g, w, reach, m, k, n);
}
extern "C" __global__ void __launch_bounds__(128) masked_linear_input_bf16(bf16* dx, const bf16* g, const bf16* w,
        const int* reach, int64_t m, int k, int n) {
    input<bf16>(dx, g, w, reach, m, k, n);
}
extern "C" __global__ void __launch_bounds__(128) masked_linear_input_f16(f16* dx, const f16* g, const f16* w,
        const int* reach, int64_t m, int k, int n) {
    input<f16>(dx, g, w, reach, m, k, n);
}

extern "C" __global__ void __launch_bounds__(128) masked_linear_weight_f32(float* dw, const float* x, const float* g,
        const int* reach, int64_t m, int k, int n) {
    weight<float>(dw, x, g, reach, m, k, n);
}
extern "C" __global__ void __launch_bounds__(128) masked_linear_weight_tf32(float* dw, const float* x, const float* g,
        const int* reach, int64_t m, int k, int n) {
    weight<tf32>(dw, x, g, reach, m, k, n);
}
extern "C" __global__ void __launch_bounds__(128) masked_linear_weight_bf16(bf16* dw, const bf16* x, const bf16* g,
        const int* reach, int64_t m, int k, int n) {
    weight<bf16>(dw, x, g, reach, m, k, n);
}
extern "C" __global__ void __launch_bounds__(128) masked_linear_weight_f16(f16* dw, const f16* x, const f16* g,
        const int* reach, int64_t m, int k, int n) {
    weight<f16>(dw, x, g, reach, m, k, n);
}
