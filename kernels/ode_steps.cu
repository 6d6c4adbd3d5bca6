// A whole solve of fixed Runge-Kutta steps with the integral of the trace, in one launch (src/ops/ode_steps.rs,
// kernels/field.cuh): a block of 128 threads takes 8 examples from t_0 to t_1. The parameters are read once into shared
// memory when they fit, states and stages never leave it, and the stage updates are part of the same loop.
//
// Per example and evaluation 2 (D H_1 + 2 Σ H_{l-1} H_l + H_L D) flops; e (2 D + H_1 + H_L) bytes per example for the
// whole solve. D = 43, H = 128, 128, 8 steps of RK4: 2.8 Mflop against 1.4 kB (f32) per example, 110 kB of parameters.
// Bound: the FMA units once B fills the chip (8 examples a block); below that, latency.
//
// Dynamic shared memory: ((4 + 2 + S) ROWS pitch) floats, then the parameters when `hold`. Launched by
// src/ops/ode_steps.rs where nothing is recorded.
#include "field.cuh"

namespace {

constexpr int MOST_STAGES = 7;

// As `Plan` in src/ops/ode_steps.rs: the method, and the steps.
struct Plan {
    int stages, steps;
    int hold;
    float start, length;
    float b[MOST_STAGES], c[MOST_STAGES];
    float a[MOST_STAGES][MOST_STAGES];
};

template <int L, class T>
__device__ void solve(T* y, T* total, const T* x, const T* v, const T* p, Field<T> field, Plan plan, FieldSizes d) {
    DYN_SHARED(float, memory);
    __shared__ float traces[MOST_STAGES][FIELD_ROWS];
    const int row0 = blockIdx.x * FIELD_ROWS, size = FIELD_ROWS * d.pitch;
    float *state = memory + 4 * size, *xs = state + size, *ks = xs + size;
    if (plan.hold) field.template hold<L>(reinterpret_cast<T*>(ks + plan.stages * size), d);
    take_rows(state, x, row0, d);
    float sum = 0.f;  // of the row of this thread
    __syncthreads();
    for (int step = 0; step < plan.steps; ++step) {
        for (int i = 0; i < plan.stages; ++i) {
            for (int e = threadIdx.x; e < size; e += FIELD_THREADS) {
                if (e % d.pitch >= d.dims) continue;
                float at = state[e];
#pragma unroll 1
                for (int j = 0; j < i; ++j) at = fmaf(plan.length * plan.a[i][j], ks[j * size + e], at);
                xs[e] = at;
            }
            __syncthreads();
            const float t = fmaf(plan.length, (float)step + plan.c[i], plan.start);
            evaluate<L>(ks + i * size, traces[i], xs, t, v, p, row0, field, FieldRows(memory, d), d);
        }
        for (int e = threadIdx.x; e < size; e += FIELD_THREADS) {
            if (e % d.pitch >= d.dims) continue;
#pragma unroll 1
            for (int i = 0; i < plan.stages; ++i) state[e] = fmaf(plan.length * plan.b[i], ks[i * size + e], state[e]);
        }
        if (threadIdx.x < FIELD_ROWS)
            for (int i = 0; i < plan.stages; ++i) sum = fmaf(plan.length * plan.b[i], traces[i][threadIdx.x], sum);
        __syncthreads();
    }
    give_rows(y, state, row0, d);
    const int row = row0 + threadIdx.x;
    if (threadIdx.x < FIELD_ROWS && row < d.rows) total[row] = store<T>(sum);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(128, 2) ode_steps_f32(float* y, float* total, const float* x,
        const float* v, const float* p, const float* w0, const float* b0, const float* w1, const float* b1,
        const float* w2, const float* b2, const float* w3, const float* b3, const float* mix, Plan plan,
        FieldSizes d) {
    WITH_HIDDEN(solve, y, total, x, v, p, (Field<float>{{w0, w1, w2, w3}, {b0, b1, b2, b3}, mix}), plan, d)
}
extern "C" __global__ void __launch_bounds__(128, 2) ode_steps_bf16(bf16* y, bf16* total, const bf16* x,
        const bf16* v, const bf16* p, const bf16* w0, const bf16* b0, const bf16* w1, const bf16* b1,
        const bf16* w2, const bf16* b2, const bf16* w3, const bf16* b3, const bf16* mix, Plan plan,
        FieldSizes d) {
    WITH_HIDDEN(solve, y, total, x, v, p, (Field<bf16>{{w0, w1, w2, w3}, {b0, b1, b2, b3}, mix}), plan, d)
}
extern "C" __global__ void __launch_bounds__(128, 2) ode_steps_f16(f16* y, f16* total, const f16* x,
        const f16* v, const f16* p, const f16* w0, const f16* b0, const f16* w1, const f16* b1,
        const f16* w2, const f16* b2, const f16* w3, const f16* b3, const f16* mix, Plan plan,
        FieldSizes d) {
    WITH_HIDDEN(solve, y, total, x, v, p, (Field<f16>{{w0, w1, w2, w3}, {b0, b1, b2, b3}, mix}), plan, d)
}
