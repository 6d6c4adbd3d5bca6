// One evaluation of a field f(t, x), a perceptron of up to three hidden layers, and of the trace of its Jacobian, by a
// block of 128 threads for ROWS examples (src/ops/ode_trace.rs has the formulas). A thread makes one output of a layer
// for all rows at once, primal and tangent, so each weight is read once per block and used 2 ROWS times.
#pragma once
#include "vec.cuh"

constexpr int FIELD_THREADS = 128, FIELD_ROWS = 8;

// As `Sizes` in src/ops/ode_trace.rs.
struct FieldSizes {
    int rows, dims, hidden;  // B, D, L: 1 to 3
    int widths[3];           // H_1, H_2, H_3
    int softplus;            // the activation: tanh or softplus
    int pitch;               // floats of a shared row: the widest layer, a multiple of 4

    __device__ __forceinline__ int inputs(int layer) const { return layer == 0 ? dims : widths[layer - 1]; }
    __device__ __forceinline__ int outputs(int layer) const { return layer == hidden ? dims : widths[layer]; }
};

template <class T>
struct Field {
    const T* w[4];
    const T* b[4];
    const T* mix;  // in place of w[1] in the tangent, or null

    // Copies the parameters to shared memory of `size` elements, for many evaluations.
    template <int L>
    __device__ __forceinline__ void hold(T* to, const FieldSizes& d) {
        auto copy = [&](const T*& from, int n) {
            if (!from) return;
            for (int i = threadIdx.x; i < n; i += FIELD_THREADS) to[i] = from[i];
            from = to;
            to += n;
        };
#pragma unroll
        for (int l = 0; l <= L; ++l) {
            copy(w[l], (d.inputs(l) + (l == 0)) * d.outputs(l));
            copy(b[l], d.outputs(l));
        }
        if (mix) copy(mix, d.widths[0] * d.widths[1]);
    }
};

// Activations and tangents, (2, ROWS, pitch) each, in shared memory.
struct FieldRows {
    float *h, *u;
    __device__ FieldRows(float* memory, const FieldSizes& d)
        : h(memory), u(memory + 2 * FIELD_ROWS * d.pitch) {}
};

// sums[r] += Σ_k rows[r][k] w[k, n].
template <class T>
__device__ __forceinline__ void column(float (&sums)[FIELD_ROWS], const float* rows, const T* w, int k_end, int n,
                                       int width, int pitch) {
    int k = 0;
#pragma unroll 2
    for (; k + 4 <= k_end; k += 4) {
        float weights[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) weights[i] = load(w[(k + i) * width + n]);
#pragma unroll
        for (int r = 0; r < FIELD_ROWS; ++r) {
            const Vec<float, 4> x = load_vec<4>(rows + r * pitch + k);
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[r] = fmaf(x.v[i], weights[i], sums[r]);
        }
    }
#pragma unroll 1
    for (; k < k_end; ++k) {
        const float weight = load(w[k * width + n]);
#pragma unroll
        for (int r = 0; r < FIELD_ROWS; ++r) sums[r] = fmaf(rows[r * pitch + k], weight, sums[r]);
    }
}

// f (ROWS, pitch) and trace (ROWS) of x (ROWS, pitch), all in shared memory; v (B, H_1) and p (B, H_L) from `row0` on.
// All threads call it; x must be visible to the block, f and trace are when it returns.
template <int L, class T>
__device__ __forceinline__ void evaluate(float* f, float* trace, const float* x, float t, const T* v, const T* p, int row0,
                         const Field<T>& field, FieldRows at, const FieldSizes& d) {
    const int size = FIELD_ROWS * d.pitch;
#pragma unroll
    for (int l = 0; l <= L; ++l) {
        const int width = d.outputs(l), inputs = d.inputs(l);
        const float* from = l == 0 ? x : at.h + (l - 1) % 2 * size;
        const float* tangent = at.u + (l + 1) % 2 * size;
#pragma unroll 1
        for (int n = threadIdx.x; n < width; n += FIELD_THREADS) {
            float a[FIELD_ROWS], u[FIELD_ROWS];
            float bias = load(field.b[l][n]);
            if (l == 0) bias = fmaf(t, load(field.w[0][d.dims * width + n]), bias);
#pragma unroll
            for (int r = 0; r < FIELD_ROWS; ++r) {
                a[r] = bias;
                u[r] = l == 0 && row0 + r < d.rows ? load(v[(int64_t)(row0 + r) * width + n]) : 0.f;
            }
            column(a, from, field.w[l], inputs, n, width, d.pitch);
            if (l == L) {
#pragma unroll
                for (int r = 0; r < FIELD_ROWS; ++r) f[r * d.pitch + n] = a[r];
                continue;
            }
            if (l > 0) column(u, tangent, l == 1 && field.mix ? field.mix : field.w[l], inputs, n, width, d.pitch);
#pragma unroll
            for (int r = 0; r < FIELD_ROWS; ++r) {
                const float h = d.softplus ? softplus(a[r]) : tanhf(a[r]);
                const float slope = d.softplus ? sigmoid(a[r]) : 1.f - h * h;
                at.h[l % 2 * size + r * d.pitch + n] = h;
                at.u[l % 2 * size + r * d.pitch + n] = slope * u[r];
            }
        }
        __syncthreads();
    }
    const int last = d.widths[L - 1], lane = threadIdx.x % 32;
    for (int r = threadIdx.x / 32; r < FIELD_ROWS; r += FIELD_THREADS / 32) {
        float sum = 0.f;
        for (int j = lane; j < last && row0 + r < d.rows; j += 32)
            sum = fmaf(at.u[(L - 1) % 2 * size + r * d.pitch + j], load(p[(int64_t)(row0 + r) * last + j]), sum);
        sum = lanes_sum(sum, 32);
        if (lane == 0) trace[r] = sum;
    }
    __syncthreads();
}

// Rows [row0, row0 + ROWS) of x (B, D) into shared memory and back; zeros behind the last.
template <class T>
__device__ void take_rows(float* to, const T* x, int row0, const FieldSizes& d) {
    for (int e = threadIdx.x; e < FIELD_ROWS * d.dims; e += FIELD_THREADS) {
        const int r = e / d.dims, i = e - r * d.dims;
        to[r * d.pitch + i] = row0 + r < d.rows ? load(x[(int64_t)(row0 + r) * d.dims + i]) : 0.f;
    }
}
template <class T>
__device__ void give_rows(T* x, const float* from, int row0, const FieldSizes& d) {
    for (int e = threadIdx.x; e < FIELD_ROWS * d.dims; e += FIELD_THREADS) {
        const int r = e / d.dims, i = e - r * d.dims;
        if (row0 + r < d.rows) x[(int64_t)(row0 + r) * d.dims + i] = store<T>(from[r * d.pitch + i]);
    }
}

// Runs f<L> for the number of hidden layers given at run time.
#define WITH_HIDDEN(f, ...)                        \
    switch (d.hidden) {                            \
        case 1: return f<1>(__VA_ARGS__);          \
        case 2: return f<2>(__VA_ARGS__);          \
        default: return f<3>(__VA_ARGS__);         \
    }
