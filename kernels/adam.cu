// One Adam step of all parameters of a model with everything in f32, the moving average of the weights, and the norm of all
// gradients; formulas in src/train/optim.rs. One launch each, whatever the number of tensors: a block takes a chunk of one
// tensor from a table in device memory.
// The numbers of a step lie in device memory, so that a recorded step can be replayed with new ones, and the gate decides
// there whether it is taken at all: nothing changes where the loss or the gradient is not finite.
// Step: w, m, v read and written, g read, the average read and written: 28 bytes per element, 36 with an average, 15 flops.
// Norm: 4 bytes, 2 flops in f64; a table of 48 bytes per 4096 elements. Bound: memory.
#include "elem.cuh"

namespace {

constexpr int THREADS = 256;

// As `Rates::device` in src/train/optim.rs; `most` is the largest norm of the gradient, `part` that of the moving average.
struct Rates {
    float beta1, beta2, lr, v_scale, eps, keep, l2, most, part;
};

// As `Chunk` in src/train/optim.rs: n elements of a tensor, its moments and its gradient; no average where that is null.
struct Chunk {
    float *w, *m, *v, *average;
    const float* g;
    int64_t n;
};

// Loss and squared norm of the gradient; see `gate` in src/train/optim.rs.
__device__ __forceinline__ bool is_open(const float* gate) {
    return fabsf(gate[0]) < INFINITY && fabsf(gate[1]) < INFINITY;
}

// Σ over a block, in an order that depends on nothing; the first thread gets it.
__device__ __forceinline__ double block_sum(double v) {
    __shared__ double sums[THREADS / 32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int o = 16; o > 0; o >>= 1) v += __shfl_xor_sync(0xffffffffu, v, o);
    if (lane == 0) sums[warp] = v;
    __syncthreads();
    double total = 0.;
    for (int i = 0; i < THREADS / 32; ++i) total += sums[i];
    return total;
}

}  // namespace

// Each thread takes packs of four elements: neighbouring threads touch neighbouring words of every array.
extern "C" __global__ void __launch_bounds__(256) adam_f32(const Chunk* table, const float* rates, const float* gate) {
    if (!is_open(gate)) return;
    const Chunk c = table[blockIdx.x];
    const Rates r = *(const Rates*)rates;
    const float norm = sqrtf(gate[1]), clip = norm > r.most ? r.most / norm : 1.f;
    for (int64_t at = 4 * threadIdx.x; at < c.n; at += 4 * THREADS) {
        Pack<float> w = load_pack(c.w, at, c.n), m = load_pack(c.m, at, c.n), v = load_pack(c.v, at, c.n);
        const Pack<float> g = load_pack(c.g, at, c.n);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float grad = clip * g.v[i] + r.l2 * w.v[i];
            m.v[i] = r.beta1 * m.v[i] + (1.f - r.beta1) * grad;
            v.v[i] = r.beta2 * v.v[i] + (1.f - r.beta2) * grad * grad;
            w.v[i] = r.keep * w.v[i] - r.lr * m.v[i] / (sqrtf(v.v[i]) * r.v_scale + r.eps);
        }
        store_pack(c.m, at, c.n, m);
        store_pack(c.v, at, c.n, v);
        store_pack(c.w, at, c.n, w);
        if (!c.average) continue;
        Pack<float> average = load_pack(c.average, at, c.n);
#pragma unroll
        for (int i = 0; i < 4; ++i) average.v[i] += r.part * (w.v[i] - average.v[i]);
        store_pack(c.average, at, c.n, average);
    }
}

// Σ g² of each chunk.
extern "C" __global__ void __launch_bounds__(256) squares_f32(double* parts, const Chunk* table) {
    const Chunk c = table[blockIdx.x];
    double sum = 0.;
    for (int64_t at = 4 * threadIdx.x; at < c.n; at += 4 * THREADS) {
        const Pack<float> g = load_pack(c.g, at, c.n);
#pragma unroll
        for (int i = 0; i < 4; ++i) sum += (double)g.v[i] * (double)g.v[i];
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

// The gate of a step, (loss or 0, Σ g²), from the chunks' sums, by one block.
extern "C" __global__ void __launch_bounds__(256) gate_f32(float* gate, const float* loss, const double* parts, int chunks) {
    double sum = 0.;
    for (int i = threadIdx.x; i < chunks; i += THREADS) sum += parts[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        gate[0] = loss ? loss[0] : 0.f;
        gate[1] = (float)sum;
    }
}
