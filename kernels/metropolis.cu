// A leapfrog step with walls and the Metropolis decision of Hamiltonian chains (src/ops/metropolis.rs).
// The decision is one launch: a block takes a chain of n numbers, adds up the gain of energy, draws, and copies the place
// that is kept; nothing comes back to the host.
// Bytes per number of size e: leapfrog 5 e, 10 flops; decision 6 e (both momenta, one place read and written), 4 flops.
// Bound: memory.
#include "block.cuh"
#include "philox.cuh"

namespace {

// x folded back into [low, high]; turns p when an odd number of walls was met.
__device__ __forceinline__ float fold(float x, float& p, float low, float high) {
    if ((x >= low && x <= high) || x != x) return x;
    const bool below = fabsf(low) < INFINITY, above = fabsf(high) < INFINITY;
    if (below && above) {
        const float width = high - low, turns = (x - low) / (2.f * width), part = turns - floorf(turns);
        const bool odd = part > 0.5f;
        if (odd) p = -p;
        return fminf(fmaxf(fmaf(2.f * width, odd ? 1.f - part : part, low), low), high);
    }
    p = -p;
    const float wall = below ? low : high;
    return wall + (wall - x);
}

template <class T>
__device__ void leapfrog(T* to, T* turned, const T* x, const T* p, const T* g, int64_t n, float epsilon, float low,
                         float high) {
    const int64_t at = first_element<T>();
    if (at >= n) return;
    Pack<T> xs = load_pack(x, at, n), ps = load_pack(p, at, n);
    const Pack<T> gs = load_pack(g, at, n);
#pragma unroll
    for (int i = 0; i < Pack<T>::WIDTH; ++i) {
        float half = fmaf(-0.5f * epsilon, load(gs.v[i]), load(ps.v[i]));
        const float moved = fold(fmaf(epsilon, half, load(xs.v[i])), half, low, high);
        xs.v[i] = store<T>(moved);
        ps.v[i] = store<T>(half);
    }
    store_pack(to, at, n, xs);
    store_pack(turned, at, n, ps);
}

template <class T>
__device__ void decide(T* x, T* g, T* u, T* odds, const T* x0, const T* x1, const T* g0, const T* g1, const T* u0,
                       const T* u1, const T* p0, const T* p1, int64_t n, const Philox& draw) {
    __shared__ float scratch[32];
    const int chain = blockIdx.x;
    const int64_t row = chain * n;
    float kinetic = 0.f;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
        const float a = load(p0[row + i]), b = load(p1[row + i]);
        kinetic = fmaf(a - b, a + b, kinetic);
    }
    kinetic = block_reduce(kinetic, Sum(), scratch);
    const float gain = (load(u0[chain]) - load(u1[chain])) + 0.5f * kinetic;
    const float probability = gain != gain ? 0.f : expf(fminf(gain, 0.f));
    const bool accept = ((double)draw.word(chain) + .5) * (1. / 4294967296.) < probability;
    const T *from = accept ? x1 : x0, *slope = accept ? g1 : g0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
        x[row + i] = from[row + i];
        g[row + i] = slope[row + i];
    }
    if (threadIdx.x == 0) {
        u[chain] = accept ? u1[chain] : u0[chain];
        odds[chain] = store<T>(probability);
    }
}

}  // namespace

extern "C" __global__ void leapfrog_f32(float* to, float* turned, const float* x, const float* p, const float* g,
        int64_t n, float epsilon, float low, float high) {
    leapfrog(to, turned, x, p, g, n, epsilon, low, high);
}
extern "C" __global__ void leapfrog_bf16(bf16* to, bf16* turned, const bf16* x, const bf16* p, const bf16* g,
        int64_t n, float epsilon, float low, float high) {
    leapfrog(to, turned, x, p, g, n, epsilon, low, high);
}
extern "C" __global__ void leapfrog_f16(f16* to, f16* turned, const f16* x, const f16* p, const f16* g, int64_t n,
        float epsilon, float low, float high) {
    leapfrog(to, turned, x, p, g, n, epsilon, low, high);
}

extern "C" __global__ void metropolis_f32(float* x, float* g, float* u, float* odds, const float* x0, const float* x1,
        const float* g0, const float* g1, const float* u0, const float* u1, const float* p0, const float* p1,
        int64_t n, Philox draw) {
    decide(x, g, u, odds, x0, x1, g0, g1, u0, u1, p0, p1, n, draw);
}
extern "C" __global__ void metropolis_bf16(bf16* x, bf16* g, bf16* u, bf16* odds, const bf16* x0, const bf16* x1,
        const bf16* g0, const bf16* g1, const bf16* u0, const bf16* u1, const bf16* p0, const bf16* p1, int64_t n,
        Philox draw) {
    decide(x, g, u, odds, x0, x1, g0, g1, u0, u1, p0, p1, n, draw);
}
extern "C" __global__ void metropolis_f16(f16* x, f16* g, f16* u, f16* odds, const f16* x0, const f16* x1,
        const f16* g0, const f16* g1, const f16* u0, const f16* u1, const f16* p0, const f16* p1, int64_t n,
        Philox draw) {
    decide(x, g, u, odds, x0, x1, g0, g1, u0, u1, p0, p1, n, draw);
}
