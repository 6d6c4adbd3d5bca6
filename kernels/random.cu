// Random tensors, bit for bit those of src/random/mod.rs: word i of a draw belongs to element i (kernels/philox.cuh).
//
// Bytes: one write per element of e bytes; 10 Philox rounds (40 integer operations) per four elements, and for normal
// numbers about 40 flops per pair. Bound: memory; for bf16 normals the integer units come close.
// Categorical draws read their (rows, k) logits twice, the second time from cache: 4 k bytes a row, a warp per row.
#include "math.cuh"
#include "philox.cuh"
#include "vec.cuh"

namespace {

// In the order of `Law` in src/random/device.rs.
enum Law { UNIFORM, OPEN, NORMAL, RADEMACHER, BERNOULLI };

// The four elements of one counter per thread.
template <class T>
__device__ void fill(T* y, int64_t n, int law, uint64_t threshold, const Philox& draw) {
    constexpr int BITS = RandomBits<T>::BITS;
    const int64_t at = 4 * global_thread();
    if (at >= n) return;
    const uint4 words = draw.words((uint32_t)(at / 4));
    const uint32_t w[4] = {words.x, words.y, words.z, words.w};
    float v[4];
    if (law == NORMAL) {
        normal_pair(w[0], w[1], v[0], v[1]);
        normal_pair(w[2], w[3], v[2], v[3]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if (law == UNIFORM) v[i] = uniform<BITS>(w[i]);
        if (law == OPEN) v[i] = uniform_open<BITS>(w[i]);
        if (law == RADEMACHER) v[i] = w[i] >> 31 ? -1.f : 1.f;
        if (law == BERNOULLI) v[i] = w[i] < threshold ? 1.f : 0.f;
    }
    Vec<T, 4> out;
#pragma unroll
    for (int i = 0; i < 4; ++i) out.v[i] = store<T>(v[i]);
    if (at + 4 <= n) return store_vec<4>(y + at, out);
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (at + i < n) y[at + i] = out.v[i];
}

// One category per row, by the inverse distribution function in f64: a warp per row, four rows per block. A row with
// NaN, +inf or only -inf gives -1.
template <class T>
__device__ void categorical(int* y, const T* logits, int64_t rows, int k, const Philox& draw) {
    const int lane = threadIdx.x % 32;
    const int64_t row = (int64_t)blockIdx.x * 4 + threadIdx.x / 32;
    if (row >= rows) return;
    const T* x = logits + row * k;
    float top = -INFINITY;
    for (int i = lane; i < k; i += 32) top = fmaxf(top, load(x[i]));
    top = warp_reduce(top, Max());
    const double u = ((double)draw.word(row) + .5) * (1. / 4294967296.);
    const int found = warp_pick(k, u, [&](int i) { return (double)exact::exp(__fadd_rn(load(x[i]), -top)); });
    if (lane == 0) y[row] = found;
}

}  // namespace

extern "C" __global__ void random_f32(float* y, int64_t n, int law, uint64_t threshold, Philox draw) {
    fill(y, n, law, threshold, draw);
}
extern "C" __global__ void random_bf16(bf16* y, int64_t n, int law, uint64_t threshold, Philox draw) {
    fill(y, n, law, threshold, draw);
}
extern "C" __global__ void random_f16(f16* y, int64_t n, int law, uint64_t threshold, Philox draw) {
    fill(y, n, law, threshold, draw);
}

// low + floor(w range / 2^32).
extern "C" __global__ void random_i32(int* y, int64_t n, int low, uint32_t range, Philox draw) {
    const int64_t at = 4 * global_thread();
    if (at >= n) return;
    const uint4 words = draw.words((uint32_t)(at / 4));
    const uint32_t w[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (at + i < n) y[at + i] = (int)((uint32_t)low + __umulhi(w[i], range));
}

extern "C" __global__ void categorical_f32(int* y, const float* logits, int64_t rows, int k, Philox draw) {
    categorical(y, logits, rows, k, draw);
}
extern "C" __global__ void categorical_bf16(int* y, const bf16* logits, int64_t rows, int k, Philox draw) {
    categorical(y, logits, rows, k, draw);
}
extern "C" __global__ void categorical_f16(int* y, const f16* logits, int64_t rows, int k, Philox draw) {
    categorical(y, logits, rows, k, draw);
}
