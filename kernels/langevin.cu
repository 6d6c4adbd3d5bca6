// A step of Langevin dynamics, y = clamp(x - step clip(g) + noise xi), its backward pass, and the last step of a chain, which
// puts rows back into the replay buffer they came from (src/ops/langevin.rs).
//
// The noise never exists in memory: a thread makes the four normal numbers of one Philox block for its four elements,
// to the bit those of src/random/mod.rs, and makes them again in the backward pass, which so knows whether the value
// was held before it was rounded. At e bytes per element: 3 e bytes and about 40 operations (a quarter of ten Philox
// rounds, half a pair of Box & Muller); backward 5 e bytes (dy, x, g in, dx, dg out) and as many operations.
// The last step takes a block per row: it writes y, learns whether all of the row is finite and copies it from cache to its
// slot, 4 e bytes instead of the 5 e of two launches.
// Bound: memory in f32 (12 bytes against 40 operations); in bf16 close to the integer units.
#include "math.cuh"
#include "philox.cuh"
#include "vec.cuh"

namespace {

// As `Step` in src/ops/langevin.rs.
struct Step {
    float step, noise, clip, low, high;
};

__device__ __forceinline__ float held(float x, float low, float high) { return fminf(fmaxf(x, low), high); }

// Four elements from `at` on, as many as there are.
template <class T>
__device__ __forceinline__ Vec<T, 4> load_four(const T* p, int64_t at, int64_t n) {
    if (at + 4 <= n) return load_vec<4>(p + at);
    Vec<T, 4> v = zero_vec<4, T>();
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (at + i < n) v.v[i] = p[at + i];
    return v;
}

template <class T>
__device__ __forceinline__ void store_four(T* p, int64_t at, int64_t n, const Vec<T, 4>& v) {
    if (at + 4 <= n) return store_vec<4>(p + at, v);
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (at + i < n) p[at + i] = v.v[i];
}

// Where the four elements at `at` would go without walls.
template <class T>
__device__ __forceinline__ void moved(float (&y)[4], const Vec<T, 4>& x, const Vec<T, 4>& g, int64_t at, const Step& how,
                                      const Philox& draw) {
    float xi[4] = {};
    if (how.noise != 0.f) {
        const uint4 w = draw.words((uint32_t)(at / 4));
        normal_pair(w.x, w.y, xi[0], xi[1]);
        normal_pair(w.z, w.w, xi[2], xi[3]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float slope = held(load(g.v[i]), -how.clip, how.clip);
        y[i] = fmaf(how.noise, xi[i], fmaf(-how.step, slope, load(x.v[i])));
    }
}

template <class T>
__device__ void forward(T* y, const T* x, const T* g, int64_t n, const Step& how, const Philox& draw) {
    const int64_t at = 4 * global_thread();
    if (at >= n) return;
    float to[4];
    moved(to, load_four(x, at, n), load_four(g, at, n), at, how, draw);
    Vec<T, 4> out;
#pragma unroll
    for (int i = 0; i < 4; ++i) out.v[i] = store<T>(held(to[i], how.low, how.high));
    store_four(y, at, n, out);
}

// dx = dy strictly inside the range, dg = -step dx strictly inside the clip.
template <class T>
__device__ void backward(T* dx, T* dg, const T* dy, const T* x, const T* g, int64_t n, const Step& how,
                         const Philox& draw) {
    const int64_t at = 4 * global_thread();
    if (at >= n) return;
    Vec<T, 4> d = load_four(dy, at, n), slope = load_four(g, at, n);
    float to[4];
    moved(to, load_four(x, at, n), slope, at, how, draw);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float s = load(slope.v[i]), pass = to[i] > how.low && to[i] < how.high ? load(d.v[i]) : 0.f;
        d.v[i] = store<T>(pass);
        slope.v[i] = store<T>(s > -how.clip && s < how.clip ? -how.step * pass : 0.f);
    }
    store_four(dx, at, n, d);
    store_four(dg, at, n, slope);
}

// Four elements from `at` on, those of [begin, end).
template <class T>
__device__ __forceinline__ Vec<T, 4> load_within(const T* p, int64_t at, int64_t begin, int64_t end) {
    if (at >= begin) return load_four(p, at, end);
    Vec<T, 4> v = zero_vec<4, T>();
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (at + i >= begin && at + i < end) v.v[i] = p[at + i];
    return v;
}

// Block i takes row i of n numbers; it also goes to buffer at slot_i if it is finite and there is such a slot.
template <class T>
__device__ void put(T* y, T* buffer, const T* x, const T* g, const int* slots, int64_t n, int size, const Step& how,
                    const Philox& draw) {
    const int slot = slots[blockIdx.x];
    const int64_t begin = blockIdx.x * n, end = begin + n, first = begin / 4 * 4 + 4 * threadIdx.x, step = 4 * blockDim.x;
    int finite = slot >= 0 && slot < size;
    for (int64_t at = first; at < end; at += step) {
        float to[4];
        moved(to, load_within(x, at, begin, end), load_within(g, at, begin, end), at, how, draw);
        Vec<T, 4> out;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            out.v[i] = store<T>(held(to[i], how.low, how.high));
            finite = finite && (at + i < begin || at + i >= end || fabsf(load(out.v[i])) < INFINITY);
        }
        if (at >= begin) {
            store_four(y, at, end, out);
        } else {
#pragma unroll
            for (int i = 0; i < 4; ++i)
                if (at + i >= begin && at + i < end) y[at + i] = out.v[i];
        }
    }
    if (!__syncthreads_and(finite)) return;
    T* row = buffer + slot * n;
    for (int64_t at = first; at < end; at += step) {
        if (n % 4 == 0) {
            store_four(row, at - begin, n, load_four(y, at, end));
            continue;
        }
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (at + i >= begin && at + i < end) row[at + i - begin] = y[at + i];
    }
}

}  // namespace

extern "C" __global__ void langevin_forward_f32(float* y, const float* x, const float* g, int64_t n, Step how,
                                                Philox draw) {
    forward(y, x, g, n, how, draw);
}
extern "C" __global__ void langevin_forward_bf16(bf16* y, const bf16* x, const bf16* g, int64_t n, Step how,
                                                 Philox draw) {
    forward(y, x, g, n, how, draw);
}
extern "C" __global__ void langevin_forward_f16(f16* y, const f16* x, const f16* g, int64_t n, Step how, Philox draw) {
    forward(y, x, g, n, how, draw);
}
extern "C" __global__ void langevin_backward_f32(float* dx, float* dg, const float* dy, const float* x, const float* g,
                                                 int64_t n, Step how, Philox draw) {
    backward(dx, dg, dy, x, g, n, how, draw);
}
extern "C" __global__ void langevin_backward_bf16(bf16* dx, bf16* dg, const bf16* dy, const bf16* x, const bf16* g,
                                                  int64_t n, Step how, Philox draw) {
    backward(dx, dg, dy, x, g, n, how, draw);
}
extern "C" __global__ void langevin_backward_f16(f16* dx, f16* dg, const f16* dy, const f16* x, const f16* g, int64_t n,
                                                 Step how, Philox draw) {
    backward(dx, dg, dy, x, g, n, how, draw);
}
extern "C" __global__ void langevin_put_f32(float* y, float* buffer, const float* x, const float* g, const int* slots,
                                            int64_t n, int size, Step how, Philox draw) {
    put(y, buffer, x, g, slots, n, size, how, draw);
}
extern "C" __global__ void langevin_put_bf16(bf16* y, bf16* buffer, const bf16* x, const bf16* g, const int* slots,
                                             int64_t n, int size, Step how, Philox draw) {
    put(y, buffer, x, g, slots, n, size, how, draw);
}
extern "C" __global__ void langevin_put_f16(f16* y, f16* buffer, const f16* x, const f16* g, const int* slots, int64_t n,
                                            int size, Step how, Philox draw) {
    put(y, buffer, x, g, slots, n, size, how, draw);
}
