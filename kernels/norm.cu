// Layer normalisation over rows of D and its backward pass (src/ops/norm.rs). A warp takes a row; its second and third
// reading come from cache. The mean and the rate 1 / sqrt(variance + eps) of each row are kept in f32, (rows, 2).
// Bytes per number of size e: 2 e forward, 3 e backward for dx and 2 e for the sums of w and b; 8 and 14 flops.
// Bound: memory. Sums over rows: per block, in a number of blocks that depends on the sizes alone, (blocks, 2, D).
#include "columns.cuh"

namespace {

constexpr int WARPS = 4;

template <class T>
__device__ void forward(T* y, float* stats, const T* x, const T* w, const T* b, int64_t rows, int d, float eps) {
    const int lane = threadIdx.x % 32;
    const int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    if (row >= rows) return;
    const T* from = x + row * d;
    float sum = 0.f, squares = 0.f;
    for (int i = lane; i < d; i += 32) sum += load(from[i]);
    const float mean = warp_reduce(sum, Sum()) / (float)d;
    for (int i = lane; i < d; i += 32) {
        const float off = load(from[i]) - mean;
        squares = fmaf(off, off, squares);
    }
    const float rate = 1.f / sqrtf(warp_reduce(squares, Sum()) / (float)d + eps);
    for (int i = lane; i < d; i += 32)
        y[row * d + i] = store<T>(fmaf((load(from[i]) - mean) * rate, load(w[i]), load(b[i])));
    if (lane == 0) stats[2 * row] = mean, stats[2 * row + 1] = rate;
}

// dx = r (u - mean(u) - n mean(u n)) with u = g w, n = (x - m) r.
template <class T>
__device__ void input(T* dx, const T* g, const T* x, const T* w, const float* stats, int64_t rows, int d) {
    const int lane = threadIdx.x % 32;
    const int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    if (row >= rows) return;
    const float mean = stats[2 * row], rate = stats[2 * row + 1];
    auto terms = [&](int i, float& u, float& n) {
        u = load(g[row * d + i]) * load(w[i]);
        n = (load(x[row * d + i]) - mean) * rate;
    };
    float sum = 0.f, dotted = 0.f, u, n;
    for (int i = lane; i < d; i += 32) {
        terms(i, u, n);
        sum += u;
        dotted = fmaf(u, n, dotted);
    }
    sum = warp_reduce(sum, Sum()) / (float)d;
    dotted = warp_reduce(dotted, Sum()) / (float)d;
    for (int i = lane; i < d; i += 32) {
        terms(i, u, n);
        dx[row * d + i] = store<T>(rate * (u - sum - n * dotted));
    }
}

// Per block the sums over its rows of g n and of g.
template <class T>
__device__ void params(float* partial, const T* g, const T* x, const float* stats, int64_t rows, int d) {
    const Walk<1> walk(d);
    float scale[1] = {}, shift[1] = {};
    if (walk.active)
        for (int64_t r = walk.first; r < rows; r += walk.step) {
            const float grad = load(g[r * d + walk.c]);
            scale[0] = fmaf(grad, (load(x[r * d + walk.c]) - stats[2 * r]) * stats[2 * r + 1], scale[0]);
            shift[0] += grad;
        }
    float* to = partial + (int64_t)blockIdx.x * 2 * d;
    walk.add(to, scale);
    walk.add(to + d, shift);
}

}  // namespace

extern "C" __global__ void norm_forward_f32(float* y, float* stats, const float* x, const float* w, const float* b,
        int64_t rows, int d, float eps) {
    forward(y, stats, x, w, b, rows, d, eps);
}
extern "C" __global__ void norm_forward_bf16(bf16* y, float* stats, const bf16* x, const bf16* w, const bf16* b,
        int64_t rows, int d, float eps) {
    forward(y, stats, x, w, b, rows, d, eps);
}
extern "C" __global__ void norm_forward_f16(f16* y, float* stats, const f16* x, const f16* w, const f16* b,
        int64_t rows, int d, float eps) {
    forward(y, stats, x, w, b, rows, d, eps);
}

extern "C" __global__ void norm_input_f32(float* dx, const float* g, const float* x, const float* w,
        const float* stats, int64_t rows, int d) {
    input(dx, g, x, w, stats, rows, d);
}
extern "C" __global__ void norm_input_bf16(bf16* dx, const bf16* g, const bf16* x, const bf16* w, const float* stats,
        int64_t rows, int d) {
    input(dx, g, x, w, stats, rows, d);
}
extern "C" __global__ void norm_input_f16(f16* dx, const f16* g, const f16* x, const f16* w, const float* stats,
        int64_t rows, int d) {
    input(dx, g, x, w, stats, rows, d);
}

extern "C" __global__ void norm_params_f32(float* partial, const float* g, const float* x, const float* stats,
        int64_t rows, int d) {
    params(partial, g, x, stats, rows, d);
}
extern "C" __global__ void norm_params_bf16(float* partial, const bf16* g, const bf16* x, const float* stats,
        int64_t rows, int d) {
    params(partial, g, x, stats, rows, d);
}
extern "C" __global__ void norm_params_f16(float* partial, const f16* g, const f16* x, const float* stats,
        int64_t rows, int d) {
    params(partial, g, x, stats, rows, d);
}
