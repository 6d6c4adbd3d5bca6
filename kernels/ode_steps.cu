// A whole solve of fixed Runge-Kutta steps with the integral of the trace, in one launch, and its backward pass in another
// (src/ops/ode_steps.rs, kernels/field.cuh, kernels/field_grad.cuh): a block of 128 threads takes 8 examples from t_0 to
// t_1. The parameters are read once into shared memory when they fit, states and stages never leave it, and the stage
// updates are part of the same loop. Where gradients will be asked for, the inputs of the stages are saved, 4 D bytes per
// evaluation and example, and everything else is made again.
//
// Per example and evaluation 2 (D H_1 + 2 sum H_{l-1} H_l + H_L D) flops, backward three times as many; e (2 D + H_1 + H_L)
// bytes per example for the whole solve. D = 43, H = 128, 128, 8 steps of RK4: 2.8 Mflop against 1.4 kB (f32) per example,
// 110 kB of parameters. Bound: the FMA units once B fills the chip (8 examples a block); below that, latency. Backward: a
// block adds the gradients of the parameters in memory of its own, P floats read and written per evaluation, from L2.
//
// Dynamic shared memory: ((4 + 2 + S) ROWS pitch) floats, then the parameters when `hold`; backward
// ((3 L + 9 + S) ROWS pitch) floats.
#include "field_grad.cuh"

namespace {

constexpr int MOST_STAGES = 7;

// As `Plan` in src/ops/ode_steps.rs: the method, and the steps.
struct Plan {
    int stages, steps;
    int hold;
    float start, length;
    float b[MOST_STAGES], c[MOST_STAGES];
    float a[MOST_STAGES][MOST_STAGES];

    __device__ __forceinline__ float time(int step, int stage) const {
        return fmaf(length, (float)step + c[stage], start);
    }
};

template <int L, class T>
__device__ void solve(T* y, T* total, float* saved, const T* x, const T* v, const T* p, Field<T> field, Plan plan, FieldSizes d) {
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
            if (saved) {
                float* to = saved + (int64_t)(step * plan.stages + i) * d.rows * d.dims;
                give_rows(to, xs, row0, d);
            }
            const float t = plan.time(step, i);
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

// The steps backwards, from the stages' inputs that the forward pass saved, (steps stages, B, D). A block takes every
// gridDim.x-th tile of 8 examples; partial (blocks, params), or null.
template <int L, class T>
__device__ void backward(T* dx, T* dv, T* dp, float* partial, const float* saved, const T* v, const T* p, const T* gy,
                         const T* gtotal, Field<T> field, Turned<T> turned, int params, Plan plan, FieldSizes d) {
    DYN_SHARED(float, memory);
    __shared__ float gt[FIELD_ROWS];
    const GradRows at(memory, d);
    const int size = FIELD_ROWS * d.pitch;
    float* own = partial ? partial + (int64_t)blockIdx.x * params : nullptr;
    bool fresh = true;
    for (int row0 = blockIdx.x * FIELD_ROWS; row0 < d.rows; row0 += gridDim.x * FIELD_ROWS) {
        take(at.state, gy, row0, d.dims, d);
        take(at.v, v, row0, d.widths[0], d);
        for (int e = threadIdx.x; e < size; e += FIELD_THREADS) at.dv[e] = at.dp[e] = 0.f;
        __syncthreads();
        for (int step = plan.steps - 1; step >= 0; --step) {
            for (int i = plan.stages - 1; i >= 0; --i) {
                const float weight = plan.length * plan.b[i];
                for (int e = threadIdx.x; e < size; e += FIELD_THREADS) {
                    float g = weight * at.state[e];
#pragma unroll 1
                    for (int j = i + 1; j < plan.stages; ++j) g = fmaf(plan.length * plan.a[j][i], at.more[j * size + e], g);
                    at.gk[e] = e % d.pitch < d.dims ? g : 0.f;
                }
                take(at.x, saved + (int64_t)(step * plan.stages + i) * d.rows * d.dims, row0, d.dims, d);
                if (threadIdx.x < FIELD_ROWS)
                    gt[threadIdx.x] =
                        row0 + (int)threadIdx.x < d.rows ? weight * load(gtotal[row0 + threadIdx.x]) : 0.f;
                __syncthreads();
                pull_back<L>(at.more + i * size, own, fresh, gt, plan.time(step, i), p, row0, field, turned, at, d);
                fresh = false;
            }
            for (int e = threadIdx.x; e < size; e += FIELD_THREADS) {
                if (e % d.pitch >= d.dims) continue;
#pragma unroll 1
                for (int i = 0; i < plan.stages; ++i) at.state[e] += at.more[i * size + e];
            }
            __syncthreads();
        }
        give(dx, at.state, row0, d.dims, d);
        give(dv, at.dv, row0, d.widths[0], d);
        give(dp, at.dp, row0, d.widths[L - 1], d);
        __syncthreads();
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(128, 2) ode_steps_f32(float* y, float* total, float* saved,
        const float* x, const float* v, const float* p, const float* w0, const float* b0, const float* w1,
        const float* b1, const float* w2, const float* b2, const float* w3, const float* b3, const float* mix,
        Plan plan, FieldSizes d) {
    WITH_HIDDEN(solve, y, total, saved, x, v, p, (Field<float>{{w0, w1, w2, w3}, {b0, b1, b2, b3}, mix}), plan, d)
}
extern "C" __global__ void __launch_bounds__(128, 2) ode_steps_bf16(bf16* y, bf16* total, float* saved, const bf16* x,
        const bf16* v, const bf16* p, const bf16* w0, const bf16* b0, const bf16* w1, const bf16* b1, const bf16* w2,
        const bf16* b2, const bf16* w3, const bf16* b3, const bf16* mix, Plan plan, FieldSizes d) {
    WITH_HIDDEN(solve, y, total, saved, x, v, p, (Field<bf16>{{w0, w1, w2, w3}, {b0, b1, b2, b3}, mix}), plan, d)
}
extern "C" __global__ void __launch_bounds__(128, 2) ode_steps_f16(f16* y, f16* total, float* saved, const f16* x,
        const f16* v, const f16* p, const f16* w0, const f16* b0, const f16* w1, const f16* b1, const f16* w2,
        const f16* b2, const f16* w3, const f16* b3, const f16* mix, Plan plan, FieldSizes d) {
    WITH_HIDDEN(solve, y, total, saved, x, v, p, (Field<f16>{{w0, w1, w2, w3}, {b0, b1, b2, b3}, mix}), plan, d)
}

extern "C" __global__ void __launch_bounds__(128, 2) ode_steps_backward_f32(float* dx, float* dv, float* dp,
        float* partial, const float* saved, const float* v, const float* p, const float* gy, const float* gtotal,
        const float* w0, const float* b0, const float* w1, const float* b1, const float* w2, const float* b2,
        const float* w3, const float* b3, const float* mix, const float* t0, const float* t1, const float* t2,
        const float* t3, const float* tmix, int params, Plan plan, FieldSizes d) {
    WITH_HIDDEN(backward, dx, dv, dp, partial, saved, v, p, gy, gtotal, (Field<float>{{w0, w1, w2, w3}, {b0, b1, b2, b3}, mix}),
                (Turned<float>{{t0, t1, t2, t3}, tmix}), params, plan, d)
}
extern "C" __global__ void __launch_bounds__(128, 2) ode_steps_backward_bf16(bf16* dx, bf16* dv, bf16* dp,
        float* partial, const float* saved, const bf16* v, const bf16* p, const bf16* gy, const bf16* gtotal,
        const bf16* w0, const bf16* b0, const bf16* w1, const bf16* b1, const bf16* w2, const bf16* b2,
        const bf16* w3, const bf16* b3, const bf16* mix, const bf16* t0, const bf16* t1, const bf16* t2,
        const bf16* t3, const bf16* tmix, int params, Plan plan, FieldSizes d) {
    WITH_HIDDEN(backward, dx, dv, dp, partial, saved, v, p, gy, gtotal, (Field<bf16>{{w0, w1, w2, w3}, {b0, b1, b2, b3}, mix}),
                (Turned<bf16>{{t0, t1, t2, t3}, tmix}), params, plan, d)
}
extern "C" __global__ void __launch_bounds__(128, 2) ode_steps_backward_f16(f16* dx, f16* dv, f16* dp, float* partial,
        const float* saved, const f16* v, const f16* p, const f16* gy, const f16* gtotal, const f16* w0,
        const f16* b0, const f16* w1, const f16* b1, const f16* w2, const f16* b2, const f16* w3, const f16* b3,
        const f16* mix, const f16* t0, const f16* t1, const f16* t2, const f16* t3, const f16* tmix, int params,
        Plan plan, FieldSizes d) {
    WITH_HIDDEN(backward, dx, dv, dp, partial, saved, v, p, gy, gtotal, (Field<f16>{{w0, w1, w2, w3}, {b0, b1, b2, b3}, mix}),
                (Turned<f16>{{t0, t1, t2, t3}, tmix}), params, plan, d)
}
