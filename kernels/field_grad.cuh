// The backward pass of one evaluation of a field and its trace (kernels/field.cuh, src/ops/ode_trace.rs), by a block of
// 128 threads for ROWS examples. Nothing but x is kept from the forward pass: layers and tangents are made again in shared
// memory. A thread makes one column of a layer's gradients for all rows, so it has them in registers when it adds their
// products with the layer's input to the gradient of the weights, in memory that belongs to this block alone.
#pragma once
#include "field.cuh"

// Transposed weights, for products with them; `mix` as in Field.
template <class T>
struct Turned {
    const T* w[4];
    const T* mix;
};

// What a block works on, all in shared memory, tiles of ROWS x pitch floats.
struct GradRows {
    float *h, *v, *u;            // L tiles each: layers, their tangents before and behind the activation
    float *da, *du;              // two tiles each, by turns
    float *x, *gk, *state;       // the input, the gradient of f, the gradient of the state
    float *dv, *dp;
    float* more;                 // S tiles: the gradients of stages
    __device__ GradRows(float* memory, const FieldSizes& d) {
        const int size = FIELD_ROWS * d.pitch, layers = d.hidden * size;
        h = memory, v = h + layers, u = v + layers;
        da = u + layers, du = da + 2 * size;
        x = du + 2 * size, gk = x + size, state = gk + size, dv = state + size, dp = dv + size, more = dp + size;
    }
};

// phi' and phi'' where phi is h.
__device__ __forceinline__ void slopes(int softplus, float h, float& first, float& second) {
    first = softplus ? -expm1f(-h) : 1.f - h * h;
    second = softplus ? first * (1.f - first) : -2.f * h * first;
}

// to (K, width) += the sum over rows of inputs (ROWS, K) x a (ROWS) in column n, and the same for tangents x u into
// `to_tangent`; rows and tangents may be null. Overwrites when `fresh`.
__device__ __forceinline__ void outer(float* to, const float* inputs, const float (&a)[FIELD_ROWS], float* to_tangent,
                                      const float* tangents, const float (&u)[FIELD_ROWS], int k_end, int n, int width,
                                      int pitch, bool fresh) {
    const bool apart = tangents && to_tangent != to;
#pragma unroll 1
    for (int k = 0; k < k_end; k += 4) {
        float sums[4] = {}, others[4] = {};
#pragma unroll
        for (int r = 0; r < FIELD_ROWS; ++r) {
            const Vec<float, 4> x = load_vec<4>(inputs + r * pitch + k);
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[i] = fmaf(x.v[i], a[r], sums[i]);
        }
        if (tangents) {
#pragma unroll
            for (int r = 0; r < FIELD_ROWS; ++r) {
                const Vec<float, 4> x = load_vec<4>(tangents + r * pitch + k);
#pragma unroll
                for (int i = 0; i < 4; ++i) others[i] = fmaf(x.v[i], u[r], others[i]);
            }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (k + i >= k_end) break;
            const int at = (k + i) * width + n;
            to[at] = (fresh ? 0.f : to[at]) + sums[i] + (apart ? 0.f : others[i]);
            if (apart) to_tangent[at] = (fresh ? 0.f : to_tangent[at]) + others[i];
        }
    }
}

// Layers and tangents at at.x; at.v holds the tangent's start. All threads call it, x visible to the block.
template <int L, class T>
__device__ __forceinline__ void retrace(float t, const Field<T>& field, const GradRows& at, const FieldSizes& d) {
    const int size = FIELD_ROWS * d.pitch;
#pragma unroll
    for (int l = 0; l < L; ++l) {
        const int width = d.outputs(l), inputs = d.inputs(l);
        const float *from = l == 0 ? at.x : at.h + (l - 1) * size, *tangent = at.u + (l - 1) * size;
#pragma unroll 1
        for (int n = threadIdx.x; n < width; n += FIELD_THREADS) {
            float a[FIELD_ROWS], u[FIELD_ROWS];
            float bias = load(field.b[l][n]);
            if (l == 0) bias = fmaf(t, load(field.w[0][d.dims * width + n]), bias);
#pragma unroll
            for (int r = 0; r < FIELD_ROWS; ++r) {
                a[r] = bias;
                u[r] = l == 0 ? at.v[r * d.pitch + n] : 0.f;
            }
            column(a, from, field.w[l], inputs, n, width, d.pitch);
            if (l > 0) column(u, tangent, l == 1 && field.mix ? field.mix : field.w[l], inputs, n, width, d.pitch);
#pragma unroll
            for (int r = 0; r < FIELD_ROWS; ++r) {
                const int to = l * size + r * d.pitch + n;
                at.h[to] = d.softplus ? softplus(a[r]) : tanhf(a[r]);
                if (l > 0) at.v[to] = u[r];
                at.u[to] = (d.softplus ? sigmoid(a[r]) : 1.f - at.h[to] * at.h[to]) * u[r];
            }
        }
        __syncthreads();
    }
}

// Given x, the gradients gk of f and gt (ROWS) of the trace: the gradient of x into `dx`, those of v and p are added to
// at.dv and at.dp, those of the parameters to `params` (in the order of the op's inputs, `mix` last; null for none), which
// are overwritten when `fresh`. p (B, H_L) from row0 on.
template <int L, class T>
__device__ __forceinline__ void pull_back(float* dx, float* params, bool fresh, const float* gt, float t, const T* p, int row0,
                                          const Field<T>& field, const Turned<T>& turned, const GradRows& at,
                                          const FieldSizes& d) {
    retrace<L>(t, field, at, d);
    const int size = FIELD_ROWS * d.pitch, last = d.widths[L - 1];
    const float none[FIELD_ROWS] = {};
    // Where the gradients of layer l begin.
    float* to[L + 2] = {};
    if (params) {
        to[0] = params;
#pragma unroll
        for (int l = 0; l <= L; ++l) to[l + 1] = to[l] + (d.inputs(l) + (l == 0) + 1) * d.outputs(l);
    }
    if (params) {
#pragma unroll 1
        for (int n = threadIdx.x; n < d.dims; n += FIELD_THREADS) {
            float g[FIELD_ROWS], sum = 0.f;
#pragma unroll
            for (int r = 0; r < FIELD_ROWS; ++r) sum += g[r] = at.gk[r * d.pitch + n];
            outer(to[L], at.h + (L - 1) * size, g, nullptr, nullptr, none, last, n, d.dims, d.pitch, fresh);
            float* bias = to[L] + last * d.dims;
            bias[n] = (fresh ? 0.f : bias[n]) + sum;
        }
    }
#pragma unroll
    for (int l = L - 1; l >= 0; --l) {
        const int width = d.outputs(l), inputs = d.inputs(l);
        float *da = at.da + l % 2 * size, *du = at.du + l % 2 * size;
#pragma unroll 1
        for (int n = threadIdx.x; n < width; n += FIELD_THREADS) {
            float a[FIELD_ROWS] = {}, u[FIELD_ROWS] = {};
            if (l == L - 1) {
                column(a, at.gk, turned.w[L], d.dims, n, width, d.pitch);
#pragma unroll
                for (int r = 0; r < FIELD_ROWS; ++r) {
                    if (row0 + r < d.rows) u[r] = gt[r] * load(p[(int64_t)(row0 + r) * width + n]);
                    at.dp[r * d.pitch + n] = fmaf(gt[r], at.u[l * size + r * d.pitch + n], at.dp[r * d.pitch + n]);
                }
            } else {
                const int next = (l + 1) % 2 * size;
                column(a, at.da + next, turned.w[l + 1], d.outputs(l + 1), n, width, d.pitch);
                column(u, at.du + next, l == 0 && turned.mix ? turned.mix : turned.w[l + 1], d.outputs(l + 1), n, width,
                       d.pitch);
            }
            float sum = 0.f;
#pragma unroll
            for (int r = 0; r < FIELD_ROWS; ++r) {
                const int here = r * d.pitch + n;
                float first, second;
                slopes(d.softplus, at.h[l * size + here], first, second);
                a[r] = fmaf(first, a[r], second * at.v[l * size + here] * u[r]);
                u[r] *= first;
                sum += da[here] = a[r];
                du[here] = u[r];
                if (l == 0) at.dv[here] += u[r];
            }
            if (!params) continue;
            float* tangents = l == 1 && field.mix ? to[L + 1] : to[l];
            outer(to[l], l == 0 ? at.x : at.h + (l - 1) * size, a, tangents, l == 0 ? nullptr : at.u + (l - 1) * size, u,
                  inputs, n, width, d.pitch, fresh);
            float* rest = to[l] + inputs * width;
            if (l == 0) {
                rest[n] = fmaf(t, sum, fresh ? 0.f : rest[n]);
                rest += width;
            }
            rest[n] = (fresh ? 0.f : rest[n]) + sum;
        }
        __syncthreads();
    }
    const int first = d.widths[0];
#pragma unroll 1
    for (int n = threadIdx.x; n < d.dims; n += FIELD_THREADS) {
        float sums[FIELD_ROWS] = {};
        column(sums, at.da, turned.w[0], first, n, d.dims + 1, d.pitch);
#pragma unroll
        for (int r = 0; r < FIELD_ROWS; ++r) dx[r * d.pitch + n] = sums[r];
    }
    __syncthreads();
}

// Rows [row0, row0 + ROWS) of x (B, n) into shared memory and back; zeros behind the last row and behind n.
template <class T>
__device__ void take(float* to, const T* x, int row0, int n, const FieldSizes& d) {
    for (int e = threadIdx.x; e < FIELD_ROWS * d.pitch; e += FIELD_THREADS) {
        const int r = e / d.pitch, i = e % d.pitch;
        to[e] = row0 + r < d.rows && i < n ? load(x[(int64_t)(row0 + r) * n + i]) : 0.f;
    }
}
template <class T>
__device__ void give(T* x, const float* from, int row0, int n, const FieldSizes& d) {
    for (int e = threadIdx.x; e < FIELD_ROWS * n; e += FIELD_THREADS) {
        const int r = e / n, i = e % n;
        if (row0 + r < d.rows) x[(int64_t)(row0 + r) * n + i] = store<T>(from[r * d.pitch + i]);
    }
}
