// Rational-quadratic spline with linear tails: forward, inverse, backward (formulas in src/ops/rq_spline.rs).
//
// x (B, D), params (B, D, P), P = 3 K - 1. A block takes `blockDim.x` numbers at a time: their parameters are one
// contiguous piece of memory, which comes in 16-byte packs into shared memory (rows of odd length, so that threads
// that walk down their rows meet in no bank), and goes back the same way as gradients. Each thread owns a number: softmax
// in place, bin by comparison, spline, and the log-determinant of an example is added in order in the same kernel.
//
// Per number, at element size e: forward e (P + 2) bytes, backward e (2 P + 3) bytes; about 20 K + 60 and 30 K + 120
// flops: K = 8 in f32, 100 bytes against 220 flops. Bound: memory.
//
// Grid: blocks of whole examples when D <= blockDim.x, else a block per example (x) and split (y), whose sums
// `rq_spline_logdet_*` adds. Dynamic shared memory: blockDim.x ((P | 1) + 1) floats. Launched by src/ops/rq_spline.rs.
#include "block.cuh"

namespace {

// What src/ops/rq_spline.rs passes.
struct Sizes {
    int examples, each;  // B, D
    int bins;
    float bound;
    int per_block;  // examples of a block, 1 when D > blockDim.x

    __device__ __forceinline__ int params() const { return 3 * bins - 1; }
    __device__ __forceinline__ int pitch() const { return params() | 1; }
};

constexpr float LEAST = 1e-3f;             // of widths and heights as parts of the range, and of slopes
constexpr float UNIT_SLOPE = 0.539742417f;  // softplus^-1(1 - 1e-3)

// Calls f(first number, count) for the pieces of this block's numbers.
template <class F>
__device__ __forceinline__ void pieces(const Sizes& d, const F& f) {
    const int64_t example = (int64_t)blockIdx.x * d.per_block;
    const int64_t first = example * d.each;
    const int64_t examples = example + d.per_block <= d.examples ? d.per_block : d.examples - example;
    const int64_t end = first + examples * d.each, step = (int64_t)gridDim.y * blockDim.x;
    for (int64_t at = first + (int64_t)blockIdx.y * blockDim.x; at < end; at += step)
        f(at, (int)(end - at < blockDim.x ? end - at : blockDim.x));
}

template <class T>
__device__ void stage(float* rows, const T* params, int64_t at, int count, const Sizes& d) {
    const int p = d.params(), pitch = d.pitch(), size = count * p;
    const bool packed = at * p % Pack<T>::WIDTH == 0;
    if (packed) {
        for (int e = threadIdx.x * Pack<T>::WIDTH; e < size; e += blockDim.x * Pack<T>::WIDTH) {
            const Pack<T> pack = load_pack(params + at * p, e, size);
#pragma unroll
            for (int i = 0; i < Pack<T>::WIDTH; ++i)
                if (e + i < size) rows[(e + i) / p * pitch + (e + i) % p] = load(pack.v[i]);
        }
    } else {
        for (int e = threadIdx.x; e < size; e += blockDim.x) rows[e / p * pitch + e % p] = load(params[at * p + e]);
    }
    __syncthreads();
}

template <class T>
__device__ void unstage(T* params, const float* rows, int64_t at, int count, const Sizes& d) {
    const int p = d.params(), pitch = d.pitch(), size = count * p;
    __syncthreads();
    for (int e = threadIdx.x; e < size; e += blockDim.x) params[at * p + e] = store<T>(rows[e / p * pitch + e % p]);
    __syncthreads();
}

__device__ __forceinline__ void softmax(float* row, int n) {
    float top = row[0], sum = 0.f;
    for (int k = 1; k < n; ++k) top = fmaxf(top, row[k]);
    for (int k = 0; k < n; ++k) sum += row[k] = expf(row[k] - top);
    const float inverse = 1.f / sum;
    for (int k = 0; k < n; ++k) row[k] *= inverse;
}

// The bin that a number lies in, in units of x and y, and what of the parameters it depends on.
struct Bin {
    int index;
    float before[2], part[2];  // sum of the softmax before the bin, softmax of the bin: widths, heights
    float x0, w, y0, h, d0, d1;
    float at;  // the number, held within the bound

    // Normalises the row and looks `number` up among the knots of x (side 0) or y (side 1).
    __device__ __forceinline__ Bin(float* row, float number, int side, const Sizes& d) {
        const int bins = d.bins;
        const float range = 2.f * d.bound, floor = range * LEAST, scale = range * (1.f - LEAST * (float)bins);
        at = number > -d.bound ? number : -d.bound;  // NaN passes through the tails
        at = at < d.bound ? at : d.bound;
        softmax(row, bins);
        softmax(row + bins, bins);
        index = 0;
        before[0] = before[1] = 0.f;
        float sums[2] = {0.f, 0.f};
        for (int k = 1; k < bins; ++k) {
            sums[0] += row[k - 1];
            sums[1] += row[bins + k - 1];
            if (at >= fmaf(sums[side], scale, fmaf((float)k, floor, -d.bound))) {
                index = k;
                before[0] = sums[0];
                before[1] = sums[1];
            }
        }
        part[0] = row[index];
        part[1] = row[bins + index];
        x0 = fmaf(before[0], scale, fmaf((float)index, floor, -d.bound));
        y0 = fmaf(before[1], scale, fmaf((float)index, floor, -d.bound));
        w = fmaf(part[0], scale, floor);
        h = fmaf(part[1], scale, floor);
        d0 = LEAST + softplus(index > 0 ? row[2 * bins + index - 1] : UNIT_SLOPE);
        d1 = LEAST + softplus(index + 1 < bins ? row[2 * bins + index] : UNIT_SLOPE);
    }
};

__device__ __forceinline__ bool inside(float x, const Sizes& d) { return x > -d.bound && x < d.bound; }

template <class T>
__device__ void forward(T* y, T* logdet, float* partial, const T* x, const T* params, Sizes d) {
    DYN_SHARED(float, rows);
    __shared__ float scratch[32];
    float* logs = rows + blockDim.x * d.pitch();
    float nats = 0.f;
    pieces(d, [&](int64_t at, int count) {
        stage(rows, params, at, count, d);
        const int i = threadIdx.x;
        float log = 0.f;
        if (i < count) {
            const float v = load(x[at + i]);
            const Bin b(rows + i * d.pitch(), v, 0, d);
            const float t = (b.at - b.x0) / b.w, s = b.h / b.w, u = 1.f - t, q = t * u;
            const float e = s + (b.d0 + b.d1 - 2.f * s) * q;
            const float n = b.d1 * t * t + 2.f * s * q + b.d0 * u * u;
            const float moved = b.y0 + b.h * (s * t * t + b.d0 * q) / e;
            log = inside(v, d) ? 2.f * logf(s / e) + logf(n) : 0.f;
            y[at + i] = store<T>(inside(v, d) ? moved : v);
        }
        logs[i] = log;
        nats += log;
        __syncthreads();
    });
    if (d.each > (int)blockDim.x) {
        nats = block_reduce(nats, Sum(), scratch);
        if (threadIdx.x != 0) return;
        if (gridDim.y > 1) partial[(int64_t)blockIdx.x * gridDim.y + blockIdx.y] = nats;
        else logdet[blockIdx.x] = store<T>(nats);
        return;
    }
    const int64_t example = (int64_t)blockIdx.x * d.per_block + threadIdx.x;
    if ((int)threadIdx.x < d.per_block && example < d.examples) {
        float sum = 0.f;
        for (int i = 0; i < d.each; ++i) sum += logs[threadIdx.x * d.each + i];
        logdet[example] = store<T>(sum);
    }
}

template <class T>
__device__ void inverse(T* x, const T* y, const T* params, Sizes d) {
    DYN_SHARED(float, rows);
    pieces(d, [&](int64_t at, int count) {
        stage(rows, params, at, count, d);
        const int i = threadIdx.x;
        if (i < count) {
            const float v = load(y[at + i]);
            const Bin b(rows + i * d.pitch(), v, 1, d);
            const float u = fminf(fmaxf((b.at - b.y0) / b.h, 0.f), 1.f), s = b.h / b.w;
            const float c = b.d0 - (b.d0 + b.d1) * u, p = 2.f * s * u, rest = 2.f * s * (1.f - u);
            const float root = sqrtf(c * c + p * rest);
            const float t = c < 0.f ? 1.f / (1.f + rest / (root - c)) : p / (c + p + root);
            x[at + i] = store<T>(inside(v, d) ? b.x0 + t * b.w : v);
        }
        __syncthreads();
    });
}

template <class T>
__device__ void backward(T* dx, T* dparams, const T* gy, const T* gl, const T* x, const T* params, Sizes d) {
    DYN_SHARED(float, rows);
    const int bins = d.bins;
    pieces(d, [&](int64_t at, int count) {
        stage(rows, params, at, count, d);
        const int i = threadIdx.x;
        if (i < count) {
            float* row = rows + i * d.pitch();
            const float v = load(x[at + i]), g = load(gy[at + i]), l = load(gl[(at + i) / d.each]);
            const bool in = inside(v, d);
            const Bin b(row, v, 0, d);
            const float inv_w = 1.f / b.w, t = (b.at - b.x0) * inv_w, s = b.h * inv_w, u = 1.f - t;
            const float q = t * u, tt = t * t, uu = u * u, c = b.d0 + b.d1 - 2.f * s;
            const float inv_e = 1.f / (s + c * q), inv_n = 1.f / (b.d1 * tt + 2.f * s * q + b.d0 * uu);
            const float r = (s * tt + b.d0 * q) * inv_e, slope = u - t;
            const float gr = g * b.h * inv_e, ge = gr * r + 2.f * l * inv_e, gn = l * inv_n;
            const float gt = gr * (2.f * s * t + b.d0 * slope) - ge * c * slope +
                             gn * 2.f * (b.d1 * t + s * slope - b.d0 * u);
            const float gs = gr * tt - ge * (1.f - 2.f * q) + 2.f * (l / s + gn * q);
            const float gx = gt * inv_w;
            dx[at + i] = store<T>(in ? gx : g);
            // Of the bin's size and its lower knot, times dsize / dsoftmax; of the raw slopes at its ends.
            const float scale = in ? 2.f * d.bound * (1.f - LEAST * (float)bins) : 0.f;
            const float size[2] = {-(gx * t + gs * s * inv_w) * scale, (g * r + gs * inv_w) * scale};
            const float low[2] = {-gx * scale, g * scale};
            const float slopes[2] = {in ? (gr * q - ge * q + gn * uu) * (1.f - expf(LEAST - b.d0)) : 0.f,
                                     in ? (gn * tt - ge * q) * (1.f - expf(LEAST - b.d1)) : 0.f};
#pragma unroll
            for (int side = 0; side < 2; ++side) {
                const float mean = low[side] * b.before[side] + size[side] * b.part[side];
                for (int k = 0; k < bins; ++k) {
                    const float of = k < b.index ? low[side] : k == b.index ? size[side] : 0.f;
                    row[side * bins + k] *= of - mean;
                }
            }
            for (int k = 1; k < bins; ++k)
                row[2 * bins + k - 1] = k == b.index ? slopes[0] : k == b.index + 1 ? slopes[1] : 0.f;
        }
        unstage(dparams, rows, at, count, d);
    });
}

// The splits of an example, in order; one thread per example.
template <class T>
__device__ void add_splits(T* logdet, const float* partial, int examples, int splits) {
    const int64_t b = global_thread();
    if (b >= examples) return;
    float nats = 0.f;
    for (int i = 0; i < splits; ++i) nats += partial[b * splits + i];
    logdet[b] = store<T>(nats);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(128) rq_spline_forward_f32(float* y, float* logdet,
        float* partial, const float* x, const float* params, Sizes d) {
    forward(y, logdet, partial, x, params, d);
}
extern "C" __global__ void __launch_bounds__(128) rq_spline_forward_bf16(bf16* y, bf16* logdet,
        float* partial, const bf16* x, const bf16* params, Sizes d) {
    forward(y, logdet, partial, x, params, d);
}
extern "C" __global__ void __launch_bounds__(128) rq_spline_forward_f16(f16* y, f16* logdet, float* partial,
        const f16* x, const f16* params, Sizes d) {
    forward(y, logdet, partial, x, params, d);
}

extern "C" __global__ void __launch_bounds__(128) rq_spline_inverse_f32(float* x, const float* y,
        const float* params, Sizes d) {
    inverse(x, y, params, d);
}
extern "C" __global__ void __launch_bounds__(128) rq_spline_inverse_bf16(bf16* x, const bf16* y,
        const bf16* params, Sizes d) {
    inverse(x, y, params, d);
}
extern "C" __global__ void __launch_bounds__(128) rq_spline_inverse_f16(f16* x, const f16* y,
        const f16* params, Sizes d) {
    inverse(x, y, params, d);
}

extern "C" __global__ void __launch_bounds__(128) rq_spline_backward_f32(float* dx, float* dparams,
        const float* gy, const float* gl, const float* x, const float* params, Sizes d) {
    backward(dx, dparams, gy, gl, x, params, d);
}
extern "C" __global__ void __launch_bounds__(128) rq_spline_backward_bf16(bf16* dx, bf16* dparams,
        const bf16* gy, const bf16* gl, const bf16* x, const bf16* params, Sizes d) {
    backward(dx, dparams, gy, gl, x, params, d);
}
extern "C" __global__ void __launch_bounds__(128) rq_spline_backward_f16(f16* dx, f16* dparams,
        const f16* gy, const f16* gl, const f16* x, const f16* params, Sizes d) {
    backward(dx, dparams, gy, gl, x, params, d);
}

extern "C" __global__ void rq_spline_logdet_f32(float* logdet, const float* partial, int examples,
        int splits) {
    add_splits(logdet, partial, examples, splits);
}
extern "C" __global__ void rq_spline_logdet_bf16(bf16* logdet, const float* partial, int examples,
        int splits) {
    add_splits(logdet, partial, examples, splits);
}
extern "C" __global__ void rq_spline_logdet_f16(f16* logdet, const float* partial, int examples, int splits) {
    add_splits(logdet, partial, examples, splits);
}
