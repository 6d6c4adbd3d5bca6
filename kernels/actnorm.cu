// Actnorm: y = (x + loc) e^log_scale per channel, its inverse and its backward pass (src/ops/actnorm.rs).
//
// x (R, C) rows; V neighbouring channels per thread, V the widest vector that divides C. A block's threads keep to
// their channels while they walk down the rows, so the sums of the backward pass stay in registers until the end.
//
// Bytes per element of size e: forward and inverse 2 e, backward 3 e; 2 and 5 flops. Bound: memory.
// The log-determinant is P Σ log_scale for every example; the first block writes it. Sums over rows: per block, in a
// number of blocks that depends on the sizes alone, then in order by `actnorm_finish_*`.
#include "columns.cuh"

namespace {

// out = (x + before) scale - after, with the scale and one of the shifts from the parameters.
template <class T, int V>
__device__ void apply(T* out, const T* x, const T* loc, const T* log_scale, int64_t rows, int channels, bool inverse) {
    const Walk<V> walk(channels);
    if (!walk.active) return;
    float shift[V], scale[V];
#pragma unroll
    for (int i = 0; i < V; ++i) {
        shift[i] = load(loc[walk.c + i]);
        scale[i] = expf(inverse ? -load(log_scale[walk.c + i]) : load(log_scale[walk.c + i]));
    }
    for (int64_t r = walk.first; r < rows; r += walk.step) {
        Vec<T, V> v = load_vec<V>(x + r * channels + walk.c);
#pragma unroll
        for (int i = 0; i < V; ++i) {
            const float from = load(v.v[i]);
            v.v[i] = store<T>(inverse ? from * scale[i] - shift[i] : (from + shift[i]) * scale[i]);
        }
        store_vec<V>(out + r * channels + walk.c, v);
    }
}

// dx = g e^log_scale, and per block Σ g (C) and Σ g y (C) into partial (blocks, 2, C).
template <class T, int V>
__device__ void backward(T* dx, float* partial, const T* g, const T* y, const T* log_scale, int64_t rows, int channels) {
    const Walk<V> walk(channels);
    float scale[V], sum_g[V] = {}, sum_gy[V] = {};
    if (walk.active) {
#pragma unroll
        for (int i = 0; i < V; ++i) scale[i] = expf(load(log_scale[walk.c + i]));
        for (int64_t r = walk.first; r < rows; r += walk.step) {
            const int64_t at = r * channels + walk.c;
            Vec<T, V> v = load_vec<V>(g + at);
            const Vec<T, V> u = load_vec<V>(y + at);
#pragma unroll
            for (int i = 0; i < V; ++i) {
                const float d = load(v.v[i]);
                sum_g[i] += d;
                sum_gy[i] = fmaf(d, load(u.v[i]), sum_gy[i]);
                v.v[i] = store<T>(d * scale[i]);
            }
            store_vec<V>(dx + at, v);
        }
    }
    float* to = partial + (size_t)blockIdx.x * 2 * channels;
    walk.add(to, sum_g);
    walk.add(to + channels, sum_gy);
}

// One thread per channel: d loc = e^log_scale Σ g, d log_scale = Σ g y + P Σ_b g_logdet.
template <class T>
__device__ void finish(T* d_loc, T* d_scale, const float* partial, const T* log_scale, const T* g_logdet, int blocks,
                       int channels, int examples, int positions) {
    __shared__ float scratch[32];
    float volume = 0.f;
    for (int b = threadIdx.x; b < examples; b += blockDim.x) volume += load(g_logdet[b]);
    volume = block_reduce(volume, Sum(), scratch) * (float)positions;
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= channels) return;
    float sum_g = 0.f, sum_gy = 0.f;
#pragma unroll 8
    for (int b = 0; b < blocks; ++b) {
        sum_g += partial[(size_t)(2 * b) * channels + c];
        sum_gy += partial[(size_t)(2 * b + 1) * channels + c];
    }
    d_loc[c] = store<T>(sum_g * expf(load(log_scale[c])));
    d_scale[c] = store<T>(sum_gy + volume);
}

template <class T>
__device__ void volume(T* logdet, const T* log_scale, int channels, int examples, int positions) {
    __shared__ float scratch[32];
    float sum = 0.f;
    for (int c = threadIdx.x; c < channels; c += blockDim.x) sum += load(log_scale[c]);
    sum = block_reduce(sum, Sum(), scratch) * (float)positions;
    for (int b = threadIdx.x; b < examples; b += blockDim.x) logdet[b] = store<T>(sum);
}

// Runs f<T, V> for the V that the launch chose.
#define WITH_V(f, T, ...)                                         \
    switch (v) {                                                  \
        case 8: return f<T, 16 / sizeof(T)>(__VA_ARGS__);         \
        case 4: return f<T, 4>(__VA_ARGS__);                      \
        case 2: return f<T, 2>(__VA_ARGS__);                      \
        default: return f<T, 1>(__VA_ARGS__);                     \
    }

template <class T>
__device__ void forward(T* y, T* logdet, const T* x, const T* loc, const T* log_scale, int64_t rows, int channels,
                        int examples, int positions, int v) {
    if (blockIdx.x == 0 && blockIdx.y == 0) volume(logdet, log_scale, channels, examples, positions);
    WITH_V(apply, T, y, x, loc, log_scale, rows, channels, false)
}

}  // namespace

extern "C" __global__ void __launch_bounds__(256) actnorm_forward_f32(float* y, float* logdet,
        const float* x, const float* loc, const float* log_scale, int64_t rows, int channels, int examples,
        int positions, int v) {
    forward(y, logdet, x, loc, log_scale, rows, channels, examples, positions, v);
}
extern "C" __global__ void __launch_bounds__(256) actnorm_forward_bf16(bf16* y, bf16* logdet, const bf16* x,
        const bf16* loc, const bf16* log_scale, int64_t rows, int channels, int examples, int positions,
        int v) {
    forward(y, logdet, x, loc, log_scale, rows, channels, examples, positions, v);
}
extern "C" __global__ void __launch_bounds__(256) actnorm_forward_f16(f16* y, f16* logdet, const f16* x,
        const f16* loc, const f16* log_scale, int64_t rows, int channels, int examples, int positions,
        int v) {
    forward(y, logdet, x, loc, log_scale, rows, channels, examples, positions, v);
}

extern "C" __global__ void __launch_bounds__(256) actnorm_inverse_f32(float* x, const float* y,
        const float* loc, const float* log_scale, int64_t rows, int channels, int v) {
    WITH_V(apply, float, x, y, loc, log_scale, rows, channels, true)
}
extern "C" __global__ void __launch_bounds__(256) actnorm_inverse_bf16(bf16* x, const bf16* y,
        const bf16* loc, const bf16* log_scale, int64_t rows, int channels, int v) {
    WITH_V(apply, bf16, x, y, loc, log_scale, rows, channels, true)
}
extern "C" __global__ void __launch_bounds__(256) actnorm_inverse_f16(f16* x, const f16* y, const f16* loc,
        const f16* log_scale, int64_t rows, int channels, int v) {
    WITH_V(apply, f16, x, y, loc, log_scale, rows, channels, true)
}

extern "C" __global__ void __launch_bounds__(256) actnorm_backward_f32(float* dx, float* partial,
        const float* g, const float* y, const float* log_scale, int64_t rows, int channels, int v) {
    WITH_V(backward, float, dx, partial, g, y, log_scale, rows, channels)
}
extern "C" __global__ void __launch_bounds__(256) actnorm_backward_bf16(bf16* dx, float* partial,
        const bf16* g, const bf16* y, const bf16* log_scale, int64_t rows, int channels, int v) {
    WITH_V(backward, bf16, dx, partial, g, y, log_scale, rows, channels)
}
extern "C" __global__ void __launch_bounds__(256) actnorm_backward_f16(f16* dx, float* partial,
        const f16* g, const f16* y, const f16* log_scale, int64_t rows, int channels, int v) {
    WITH_V(backward, f16, dx, partial, g, y, log_scale, rows, channels)
}

extern "C" __global__ void actnorm_finish_f32(float* d_loc, float* d_scale, const float* partial,
        const float* log_scale, const float* g_logdet, int blocks, int channels, int examples,
        int positions) {
    finish(d_loc, d_scale, partial, log_scale, g_logdet, blocks, channels, examples, positions);
}
extern "C" __global__ void actnorm_finish_bf16(bf16* d_loc, bf16* d_scale, const float* partial,
        const bf16* log_scale, const bf16* g_logdet, int blocks, int channels, int examples,
        int positions) {
    finish(d_loc, d_scale, partial, log_scale, g_logdet, blocks, channels, examples, positions);
}
extern "C" __global__ void actnorm_finish_f16(f16* d_loc, f16* d_scale, const float* partial,
        const f16* log_scale, const f16* g_logdet, int blocks, int channels, int examples, int positions) {
    finish(d_loc, d_scale, partial, log_scale, g_logdet, blocks, channels, examples, positions);
}
