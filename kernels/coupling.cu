// Coupling layers: y = (a, (b + t) e^l(s)) with its log-determinant, the inverse, and the backward pass.
// Formulas, kinds and layouts: src/ops/coupling.rs.
//
// x (B, P, C) = (a, b), b the last K = C / 2 channels; h (B, P, 2 K) = (s, t), or (B, P, K) = t when additive.
// A thread takes V neighbouring channels of b at one position, V the widest pack that divides both halves; lanes of
// a block share an example and reduce its log-determinant in the same pass. An example too large for one block is
// split over gridDim.y blocks, whose sums `coupling_logdet_*` adds in order.
//
// At element size e, per position:  forward and inverse  e (2 C + H) bytes, or e (2 K + H) in place (y == x: the
// kept half is not touched), backward  e (3 C + 2 H) bytes; about 25 flops per scaled element against 12 to 24 bytes.
// Bound: memory, by far (an H100 does some 20 f32 flops per byte, this needs 2).
//
// Grid (ceil(B / blockDim.y), splits), block (lanes, examples per block): lanes a power of two up to 32, or a whole
// block of 32 n lanes with one example each. Launched by src/ops/coupling.rs.
#include "vec.cuh"

namespace {

enum Kind { SIGMOID, EXP, TANH, ADDITIVE };

// l(s) and e^l(s).
template <Kind KIND>
__device__ __forceinline__ void log_scale(float s, float& log, float& scale) {
    if (KIND == SIGMOID) {
        log = -softplus(-(s + 2.f));
        scale = sigmoid(s + 2.f);
    } else if (KIND == EXP) {
        log = s;
        scale = expf(s);
    } else if (KIND == TANH) {
        log = 2.f * tanhf(0.5f * s);
        scale = expf(log);
    } else {
        log = 0.f;
        scale = 1.f;
    }
}

// l'(s) and e^l(s).
template <Kind KIND>
__device__ __forceinline__ void slope(float s, float& slope, float& scale) {
    if (KIND == SIGMOID) {
        slope = sigmoid(-(s + 2.f));
        scale = sigmoid(s + 2.f);
    } else if (KIND == EXP) {
        slope = 1.f;
        scale = expf(s);
    } else if (KIND == TANH) {
        float t = tanhf(0.5f * s);
        slope = 1.f - t * t;
        scale = expf(2.f * t);
    } else {
        slope = 0.f;
        scale = 1.f;
    }
}

// What src/ops/coupling.rs passes.
struct Sizes {
    int examples, positions, channels;
    int kind;  // a Kind
    int vec;   // V: 1, 2, 4 or 8 elements, a divisor of both halves and of 16 bytes
};

// Where a thread's V channels lie, relative to the rows of x and h.
template <int V, Kind KIND>
struct Place {
    int k, first, width;  // channels of b, of a, of h
    int packs, units;     // packs per position, per example
    __device__ explicit Place(const Sizes& d)
        : k(d.channels / 2), first(d.channels - k), width(KIND == ADDITIVE ? k : 2 * k), packs(k / V),
          units(d.positions * packs) {}
    __device__ __forceinline__ int shift() const { return width - k; }
};

// The kept half: V channels of a, and by the first thread of a row the one that an odd C adds.
template <int V, class T>
__device__ __forceinline__ void keep(T* to, const T* from, int j, int k, int first) {
    store_vec<V>(to + j, load_vec<V>(from + j));
    if (V == 1 && first > k && j == 0) to[k] = from[k];
}

__device__ __forceinline__ int my_example() { return blockIdx.x * blockDim.y + threadIdx.y; }

template <class T, int V, Kind KIND>
__device__ void forward(T* y, T* logdet, float* partial, const T* x, const T* h, Sizes d) {
    __shared__ float scratch[32];
    const Place<V, KIND> at(d);
    const int example = my_example();
    float nats = 0.f;
    if (example < d.examples) {
        const size_t row0 = (size_t)example * d.positions;
        for (int u = blockIdx.y * blockDim.x + threadIdx.x; u < at.units; u += gridDim.y * blockDim.x) {
            const int p = u / at.packs, j = (u - p * at.packs) * V;
            const T* xr = x + (row0 + p) * d.channels;
            const T* hr = h + (row0 + p) * at.width;
            T* yr = y + (row0 + p) * d.channels;
            Vec<T, V> b = load_vec<V>(xr + at.first + j), t = load_vec<V>(hr + at.shift() + j), s = t;
            if (KIND != ADDITIVE) s = load_vec<V>(hr + j);
            if (y != x) keep<V>(yr, xr, j, at.k, at.first);
#pragma unroll
            for (int i = 0; i < V; ++i) {
                float log, scale;
                log_scale<KIND>(load(s.v[i]), log, scale);
                nats += log;
                b.v[i] = store<T>((load(b.v[i]) + load(t.v[i])) * scale);
            }
            store_vec<V>(yr + at.first + j, b);
        }
    }
    nats = blockDim.x > 32 ? block_reduce(nats, Sum(), scratch) : lanes_sum(nats, blockDim.x);
    if (threadIdx.x != 0 || example >= d.examples) return;
    if (gridDim.y > 1) partial[(size_t)example * gridDim.y + blockIdx.y] = nats;
    else logdet[example] = store<T>(nats);
}

template <class T, int V, Kind KIND>
__device__ void inverse(T* x, const T* y, const T* h, Sizes d) {
    const Place<V, KIND> at(d);
    const int example = my_example();
    if (example >= d.examples) return;
    const size_t row0 = (size_t)example * d.positions;
    for (int u = blockIdx.y * blockDim.x + threadIdx.x; u < at.units; u += gridDim.y * blockDim.x) {
        const int p = u / at.packs, j = (u - p * at.packs) * V;
        const T* yr = y + (row0 + p) * d.channels;
        const T* hr = h + (row0 + p) * at.width;
        T* xr = x + (row0 + p) * d.channels;
        Vec<T, V> b = load_vec<V>(yr + at.first + j), t = load_vec<V>(hr + at.shift() + j), s = t;
        if (KIND != ADDITIVE) s = load_vec<V>(hr + j);
        if (x != y) keep<V>(xr, yr, j, at.k, at.first);
#pragma unroll
        for (int i = 0; i < V; ++i) {
            float log, scale;
            log_scale<KIND>(load(s.v[i]), log, scale);
            b.v[i] = store<T>(load(b.v[i]) / scale - load(t.v[i]));
        }
        store_vec<V>(xr + at.first + j, b);
    }
}

// db = dt = g e^l, ds = (g y_b + g_logdet) l'(s), da = g_a.
template <class T, int V, Kind KIND>
__device__ void backward(T* dx, T* dh, const T* g, const T* g_logdet, const T* y, const T* h, Sizes d) {
    const Place<V, KIND> at(d);
    const int example = my_example();
    if (example >= d.examples) return;
    const size_t row0 = (size_t)example * d.positions;
    const float gl = load(g_logdet[example]);
    for (int u = blockIdx.y * blockDim.x + threadIdx.x; u < at.units; u += gridDim.y * blockDim.x) {
        const int p = u / at.packs, j = (u - p * at.packs) * V;
        const size_t r = (row0 + p) * d.channels, rh = (row0 + p) * at.width;
        Vec<T, V> gb = load_vec<V>(g + r + at.first + j), s = gb, yb = gb;
        if (KIND != ADDITIVE) {
            s = load_vec<V>(h + rh + j);
            yb = load_vec<V>(y + r + at.first + j);
        }
        if (dx != g) keep<V>(dx + r, g + r, j, at.k, at.first);
#pragma unroll
        for (int i = 0; i < V; ++i) {
            float l, scale;
            slope<KIND>(load(s.v[i]), l, scale);
            const float gi = load(gb.v[i]);
            s.v[i] = store<T>((gi * load(yb.v[i]) + gl) * l);
            gb.v[i] = store<T>(gi * scale);
        }
        store_vec<V>(dx + r + at.first + j, gb);
        if (KIND != ADDITIVE) store_vec<V>(dh + rh + j, s);
        store_vec<V>(dh + rh + at.shift() + j, gb);
    }
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

// Rows of `from` channels cut to, or filled with zeros up to, `to` channels: the half that a network sees, and back.
template <class T>
__device__ void resize(T* y, const T* x, int64_t n, int from, int to) {
    const int64_t e = global_thread();
    if (e >= n) return;
    const int64_t row = e / to;
    const int c = (int)(e - row * to);
    y[e] = c < from ? x[row * from + c] : store<T>(0.f);
}

}  // namespace

// Runs f<T, V, KIND> for the vector width and kind that are given at run time.
#define WITH_KIND(f, T, V, ...)                                 \
    switch (d.kind) {                                          \
        case SIGMOID: return f<T, V, SIGMOID>(__VA_ARGS__);    \
        case EXP: return f<T, V, EXP>(__VA_ARGS__);            \
        case TANH: return f<T, V, TANH>(__VA_ARGS__);          \
        default: return f<T, V, ADDITIVE>(__VA_ARGS__);        \
    }
#define WITH_SIZES(f, T, ...)                                   \
    switch (d.vec) {                                           \
        case 8: WITH_KIND(f, T, (16 / sizeof(T)), __VA_ARGS__) \
        case 4: WITH_KIND(f, T, 4, __VA_ARGS__)                \
        case 2: WITH_KIND(f, T, 2, __VA_ARGS__)                \
        default: WITH_KIND(f, T, 1, __VA_ARGS__)               \
    }

// With more than one split the log-determinants are left in partial (B, splits), for `coupling_logdet_*`.
extern "C" __global__ void coupling_forward_f32(float* y, float* logdet, float* partial, const float* x,
        const float* h, Sizes d) {
    WITH_SIZES(forward, float, y, logdet, partial, x, h, d)
}
extern "C" __global__ void coupling_forward_bf16(bf16* y, bf16* logdet, float* partial, const bf16* x,
        const bf16* h, Sizes d) {
    WITH_SIZES(forward, bf16, y, logdet, partial, x, h, d)
}
extern "C" __global__ void coupling_forward_f16(f16* y, f16* logdet, float* partial, const f16* x,
        const f16* h, Sizes d) {
    WITH_SIZES(forward, f16, y, logdet, partial, x, h, d)
}

extern "C" __global__ void coupling_inverse_f32(float* x, const float* y, const float* h, Sizes d) {
    WITH_SIZES(inverse, float, x, y, h, d)
}
extern "C" __global__ void coupling_inverse_bf16(bf16* x, const bf16* y, const bf16* h, Sizes d) {
    WITH_SIZES(inverse, bf16, x, y, h, d)
}
extern "C" __global__ void coupling_inverse_f16(f16* x, const f16* y, const f16* h, Sizes d) {
    WITH_SIZES(inverse, f16, x, y, h, d)
}

extern "C" __global__ void coupling_backward_f32(float* dx, float* dh, const float* g,
        const float* g_logdet, const float* y, const float* h, Sizes d) {
    WITH_SIZES(backward, float, dx, dh, g, g_logdet, y, h, d)
}
extern "C" __global__ void coupling_backward_bf16(bf16* dx, bf16* dh, const bf16* g, const bf16* g_logdet,
        const bf16* y, const bf16* h, Sizes d) {
    WITH_SIZES(backward, bf16, dx, dh, g, g_logdet, y, h, d)
}
extern "C" __global__ void coupling_backward_f16(f16* dx, f16* dh, const f16* g, const f16* g_logdet,
        const f16* y, const f16* h, Sizes d) {
    WITH_SIZES(backward, f16, dx, dh, g, g_logdet, y, h, d)
}

extern "C" __global__ void coupling_logdet_f32(float* logdet, const float* partial, int examples,
        int splits) {
    add_splits(logdet, partial, examples, splits);
}
extern "C" __global__ void coupling_logdet_bf16(bf16* logdet, const float* partial, int examples,
        int splits) {
    add_splits(logdet, partial, examples, splits);
}
extern "C" __global__ void coupling_logdet_f16(f16* logdet, const float* partial, int examples, int splits) {
    add_splits(logdet, partial, examples, splits);
}

extern "C" __global__ void coupling_resize_f32(float* y, const float* x, int64_t n, int from, int to) {
    resize(y, x, n, from, to);
}
extern "C" __global__ void coupling_resize_bf16(bf16* y, const bf16* x, int64_t n, int from, int to) {
    resize(y, x, n, from, to);
}
extern "C" __global__ void coupling_resize_f16(f16* y, const f16* x, int64_t n, int from, int to) {
    resize(y, x, n, from, to);
}
