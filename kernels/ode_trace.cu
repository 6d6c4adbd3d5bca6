// f(t, x) of a perceptron and the trace of its Jacobian in one launch (src/ops/ode_trace.rs, kernels/field.cuh).
//
// Per example 2 (D H_1 + 2 Σ H_{l-1} H_l + H_L D) flops and e (2 D + H_1 + H_L) bytes, and per block of 8 examples the
// parameters once, from L2: a single evaluation has no use for a copy of them in shared memory (ode_steps.cu has).
// D = 43, H = 128, 128: 88,000 flops per example against 1.4 kB and 14 kB of parameters in f32. Bound: L2 and latency.
//
// Dynamic shared memory: (4 + 2) ROWS pitch floats. Launched by src/ops/ode_trace.rs where nothing is recorded.
#include "field.cuh"

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

}  // namespace

extern "C" __global__ void __launch_bounds__(128, 2) ode_trace_f32(float* f, float* nats, const float* x,
        const float* v, const float* p, const float* w0, const float* b0, const float* w1, const float* b1,
        const float* w2, const float* b2, const float* w3, const float* b3, const float* mix, float t,
        FieldSizes d) {
    WITH_HIDDEN(trace, f, nats, x, v, p, (Field<float>{{w0, w1, w2, w3}, {b0, b1, b2, b3}, mix}), t, d)
}
extern "C" __global__ void __launch_bounds__(128, 2) ode_trace_bf16(bf16* f, bf16* nats, const bf16* x,
        const bf16* v, const bf16* p, const bf16* w0, const bf16* b0, const bf16* w1, const bf16* b1,
        const bf16* w2, const bf16* b2, const bf16* w3, const bf16* b3, const bf16* mix, float t,
        FieldSizes d) {
    WITH_HIDDEN(trace, f, nats, x, v, p, (Field<bf16>{{w0, w1, w2, w3}, {b0, b1, b2, b3}, mix}), t, d)
}
extern "C" __global__ void __launch_bounds__(128, 2) ode_trace_f16(f16* f, f16* nats, const f16* x,
        const f16* v, const f16* p, const f16* w0, const f16* b0, const f16* w1, const f16* b1,
        const f16* w2, const f16* b2, const f16* w3, const f16* b3, const f16* mix, float t, FieldSizes d) {
    WITH_HIDDEN(trace, f, nats, x, v, p, (Field<f16>{{w0, w1, w2, w3}, {b0, b1, b2, b3}, mix}), t, d)
}
