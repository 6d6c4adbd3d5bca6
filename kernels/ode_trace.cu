// f(t, x) of a perceptron and the trace of its Jacobian in one launch, and their backward pass (src/ops/ode_trace.rs,
// kernels/field.cuh, kernels/field_grad.cuh).
//
// Per example 2 (D H_1 + 2 sum H_{l-1} H_l + H_L D) flops and e (2 D + H_1 + H_L) bytes, and per block of 8 examples the
// parameters once, from L2: a single evaluation has no use for a copy of them in shared memory (ode_steps.cu has).
// D = 43, H = 128, 128: 88,000 flops per example against 1.4 kB and 14 kB of parameters in f32. Bound: L2 and latency.
// Backward: the forward pass again and twice its flops for the gradients; a block adds those of the parameters in memory
// of its own, P floats read and written per 8 examples.
//
// Dynamic shared memory: (4 + 2) ROWS pitch floats; backward (3 L + 9) ROWS pitch.
#include "field_grad.cuh"

namespace {

template <int L, class T>
__device__ void trace(T* f, T* trace, const T* x, const T* v, const T* p, Field<T> field, float t, FieldSizes d) {
    DYN_SHARED(float, memory);
    __shared__ float traces[FIELD_ROWS];
    const int row0 = blockIdx.x * FIELD_ROWS, size = FIELD_ROWS * d.pitch;
    float *xs = memory + 4 * size, *fs = xs + size;
    take_rows(xs, x, row0, d);
    __syncthreads();
    evaluate<L>(fs, traces, xs, t, v, p, row0, field, FieldRows(memory, d), d);
    give_rows(f, fs, row0, d);
    const int row = row0 + threadIdx.x;
    if (threadIdx.x < FIELD_ROWS && row < d.rows) trace[row] = store<T>(traces[threadIdx.x]);
}

// A block takes every gridDim.x-th tile of 8 examples; partial (blocks, params), or null.
template <int L, class T>
__device__ void backward(T* dx, T* dv, T* dp, float* partial, const T* x, const T* v, const T* p, const T* gf,
                         const T* gtrace, Field<T> field, Turned<T> turned, int params, float t, FieldSizes d) {
    DYN_SHARED(float, memory);
    __shared__ float gt[FIELD_ROWS];
    const GradRows at(memory, d);
    float* own = partial ? partial + (int64_t)blockIdx.x * params : nullptr;
    for (int row0 = blockIdx.x * FIELD_ROWS; row0 < d.rows; row0 += gridDim.x * FIELD_ROWS) {
        take(at.x, x, row0, d.dims, d);
        take(at.v, v, row0, d.widths[0], d);
        take(at.gk, gf, row0, d.dims, d);
        for (int e = threadIdx.x; e < FIELD_ROWS * d.pitch; e += FIELD_THREADS) at.dv[e] = at.dp[e] = 0.f;
        if (threadIdx.x < FIELD_ROWS)
            gt[threadIdx.x] = row0 + (int)threadIdx.x < d.rows ? load(gtrace[row0 + threadIdx.x]) : 0.f;
        __syncthreads();
        pull_back<L>(at.state, own, row0 == (int)blockIdx.x * FIELD_ROWS, gt, t, p, row0, field, turned, at, d);
        give(dx, at.state, row0, d.dims, d);
        give(dv, at.dv, row0, d.widths[0], d);
        give(dp, at.dp, row0, d.widths[L - 1], d);
        __syncthreads();
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(128, 2) ode_trace_f32(float* f, float* nats, const float* x,
        const float* v, const float* p, const float* w0, const float* b0, const float* w1, const float* b1,
        const float* w2, const float* b2, const float* w3, const float* b3, const float* mix, float t, FieldSizes d) {
    WITH_HIDDEN(trace, f, nats, x, v, p, (Field<float>{{w0, w1, w2, w3}, {b0, b1, b2, b3}, mix}), t, d)
}
extern "C" __global__ void __launch_bounds__(128, 2) ode_trace_bf16(bf16* f, bf16* nats, const bf16* x, const bf16* v,
        const bf16* p, const bf16* w0, const bf16* b0, const bf16* w1, const bf16* b1, const bf16* w2, const bf16* b2,
        const bf16* w3, const bf16* b3, const bf16* mix, float t, FieldSizes d) {
    WITH_HIDDEN(trace, f, nats, x, v, p, (Field<bf16>{{w0, w1, w2, w3}, {b0, b1, b2, b3}, mix}), t, d)
}
extern "C" __global__ void __launch_bounds__(128, 2) ode_trace_f16(f16* f, f16* nats, const f16* x, const f16* v,
        const f16* p, const f16* w0, const f16* b0, const f16* w1, const f16* b1, const f16* w2, const f16* b2,
        const f16* w3, const f16* b3, const f16* mix, float t, FieldSizes d) {
    WITH_HIDDEN(trace, f, nats, x, v, p, (Field<f16>{{w0, w1, w2, w3}, {b0, b1, b2, b3}, mix}), t, d)
}

extern "C" __global__ void __launch_bounds__(128, 2) ode_trace_backward_f32(float* dx, float* dv, float* dp,
        float* partial, const float* x, const float* v, const float* p, const float* gf, const float* gtrace,
        const float* w0, const float* b0, const float* w1, const float* b1, const float* w2, const float* b2,
        const float* w3, const float* b3, const float* mix, const float* t0, const float* t1, const float* t2,
        const float* t3, const float* tmix, int params, float t, FieldSizes d) {
    WITH_HIDDEN(backward, dx, dv, dp, partial, x, v, p, gf, gtrace, (Field<float>{{w0, w1, w2, w3}, {b0, b1, b2, b3}, mix}),
                (Turned<float>{{t0, t1, t2, t3}, tmix}), params, t, d)
}
extern "C" __global__ void __launch_bounds__(128, 2) ode_trace_backward_bf16(bf16* dx, bf16* dv, bf16* dp,
        float* partial, const bf16* x, const bf16* v, const bf16* p, const bf16* gf, const bf16* gtrace,
        const bf16* w0, const bf16* b0, const bf16* w1, const bf16* b1, const bf16* w2, const bf16* b2,
        const bf16* w3, const bf16* b3, const bf16* mix, const bf16* t0, const bf16* t1, const bf16* t2,
        const bf16* t3, const bf16* tmix, int params, float t, FieldSizes d) {
    WITH_HIDDEN(backward, dx, dv, dp, partial, x, v, p, gf, gtrace, (Field<bf16>{{w0, w1, w2, w3}, {b0, b1, b2, b3}, mix}),
                (Turned<bf16>{{t0, t1, t2, t3}, tmix}), params, t, d)
}
extern "C" __global__ void __launch_bounds__(128, 2) ode_trace_backward_f16(f16* dx, f16* dv, f16* dp, float* partial,
        const f16* x, const f16* v, const f16* p, const f16* gf, const f16* gtrace, const f16* w0, const f16* b0,
        const f16* w1, const f16* b1, const f16* w2, const f16* b2, const f16* w3, const f16* b3, const f16* mix,
        const f16* t0, const f16* t1, const f16* t2, const f16* t3, const f16* tmix, int params, float t,
        FieldSizes d) {
    WITH_HIDDEN(backward, dx, dv, dp, partial, x, v, p, gf, gtrace, (Field<f16>{{w0, w1, w2, w3}, {b0, b1, b2, b3}, mix}),
                (Turned<f16>{{t0, t1, t2, t3}, tmix}), params, t, d)
}
