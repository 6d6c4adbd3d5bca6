// The two sums of a Runge-Kutta step, x + sum_j w_j k_j and the squares of an error against its tolerance, each in one
// pass over up to seven slopes (src/ops/runge_kutta.rs).
// Bytes per number of size e with J slopes: e (2 + J) and e (2 + J); 2 J and 2 J + 8 flops. Bound: memory. Partial sums
// of the error: per block, in a number of blocks that depends on the size alone.
#include "block.cuh"

namespace {

constexpr int TERMS = 7;

// As `Weights` in src/ops/runge_kutta.rs: h w_j.
struct Weights {
    int terms;
    float of[TERMS];
};

template <class T>
struct Slopes {
    const T* k[TERMS];

    // Adds sum_j w_j k_j of the pack at `at` to sums.
    __device__ __forceinline__ void add(float (&sums)[Pack<T>::WIDTH], int64_t at, int64_t n, const Weights& w) const {
#pragma unroll
        for (int j = 0; j < TERMS; ++j) {
            if (j >= w.terms) break;
            const Pack<T> pack = load_pack(k[j], at, n);
#pragma unroll
            for (int i = 0; i < Pack<T>::WIDTH; ++i) sums[i] = fmaf(w.of[j], load(pack.v[i]), sums[i]);
        }
    }
};

template <class T>
__device__ void stage(T* y, const T* x, const Slopes<T>& slopes, int64_t n, const Weights& w) {
    const int64_t at = first_element<T>();
    if (at >= n) return;
    Pack<T> pack = load_pack(x, at, n);
    float sums[Pack<T>::WIDTH];
#pragma unroll
    for (int i = 0; i < Pack<T>::WIDTH; ++i) sums[i] = load(pack.v[i]);
    slopes.add(sums, at, n, w);
#pragma unroll
    for (int i = 0; i < Pack<T>::WIDTH; ++i) pack.v[i] = store<T>(sums[i]);
    store_pack(y, at, n, pack);
}

// partial (blocks); e starts at `start`, or at 0 where that is null.
template <class T>
__device__ void error(float* partial, const T* a, const T* b, const T* start, const Slopes<T>& slopes, int64_t n,
                      const Weights& w, float atol, float rtol) {
    constexpr int WIDTH = Pack<T>::WIDTH;
    __shared__ float scratch[32];
    float sum = 0.f;
    for (int64_t at = first_element<T>(); at < n; at += (int64_t)gridDim.x * blockDim.x * WIDTH) {
        float e[WIDTH] = {};
        if (start) {
            const Pack<T> pack = load_pack(start, at, n);
#pragma unroll
            for (int i = 0; i < WIDTH; ++i) e[i] = load(pack.v[i]);
        }
        slopes.add(e, at, n, w);
        const Pack<T> from = load_pack(a, at, n), to = load_pack(b, at, n);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) {
            if (at + i >= n) break;
            const float scaled = e[i] / fmaf(rtol, fmaxf(fabsf(load(from.v[i])), fabsf(load(to.v[i]))), atol);
            sum = fmaf(scaled, scaled, sum);
        }
    }
    sum = block_reduce(sum, Sum(), scratch);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(256) runge_kutta_stage_f32(float* y, const float* x, const float* k0,
        const float* k1, const float* k2, const float* k3, const float* k4, const float* k5, const float* k6,
        int64_t n, Weights w) {
    stage(y, x, Slopes<float>{{k0, k1, k2, k3, k4, k5, k6}}, n, w);
}
extern "C" __global__ void __launch_bounds__(256) runge_kutta_stage_bf16(bf16* y, const bf16* x, const bf16* k0,
        const bf16* k1, const bf16* k2, const bf16* k3, const bf16* k4, const bf16* k5, const bf16* k6, int64_t n,
        Weights w) {
    stage(y, x, Slopes<bf16>{{k0, k1, k2, k3, k4, k5, k6}}, n, w);
}
extern "C" __global__ void __launch_bounds__(256) runge_kutta_stage_f16(f16* y, const f16* x, const f16* k0,
        const f16* k1, const f16* k2, const f16* k3, const f16* k4, const f16* k5, const f16* k6, int64_t n,
        Weights w) {
    stage(y, x, Slopes<f16>{{k0, k1, k2, k3, k4, k5, k6}}, n, w);
}

extern "C" __global__ void __launch_bounds__(256) runge_kutta_error_f32(float* partial, const float* a,
        const float* b, const float* start, const float* k0, const float* k1, const float* k2, const float* k3,
        const float* k4, const float* k5, const float* k6, int64_t n, Weights w, float atol, float rtol) {
    error(partial, a, b, start, Slopes<float>{{k0, k1, k2, k3, k4, k5, k6}}, n, w, atol, rtol);
}
extern "C" __global__ void __launch_bounds__(256) runge_kutta_error_bf16(float* partial, const bf16* a, const bf16* b,
        const bf16* start, const bf16* k0, const bf16* k1, const bf16* k2, const bf16* k3, const bf16* k4,
        const bf16* k5, const bf16* k6, int64_t n, Weights w, float atol, float rtol) {
    error(partial, a, b, start, Slopes<bf16>{{k0, k1, k2, k3, k4, k5, k6}}, n, w, atol, rtol);
}
extern "C" __global__ void __launch_bounds__(256) runge_kutta_error_f16(float* partial, const f16* a, const f16* b,
        const f16* start, const f16* k0, const f16* k1, const f16* k2, const f16* k3, const f16* k4, const f16* k5,
        const f16* k6, int64_t n, Weights w, float atol, float rtol) {
    error(partial, a, b, start, Slopes<f16>{{k0, k1, k2, k3, k4, k5, k6}}, n, w, atol, rtol);
}
