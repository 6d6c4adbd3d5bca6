// One Adam step of a tensor with everything in f32, and the moving average of its weights; formulas in
// src/train/optim.rs.
// The numbers of a step lie in device memory, so that a recorded step can be replayed with new ones, and the gate decides
// there whether it is taken at all: nothing changes where the loss or the gradient is not finite.
// Bytes: w, m, v read and written, g read, the average read and written: 28 per element, 36 with an average;
// flops: 15. Bound: memory.
#include "elem.cuh"

// As `Rates::device` in src/train/optim.rs; `most` is the largest norm of the gradient, `part` that of the moving average.
struct Rates {
    float beta1, beta2, lr, v_scale, eps, keep, l2, most, part;
};

// Loss and squared norm of the gradient; see `Gate` in src/train/optim.rs.
__device__ __forceinline__ bool is_open(const float* gate) {
    return fabsf(gate[0]) < INFINITY && fabsf(gate[1]) < INFINITY;
}

// One element per thread: neighbouring threads touch neighbouring words of every array.
extern "C" __global__ void adam_f32(float* w, float* m, float* v, const float* g, int64_t n, const float* rates,
                                    const float* gate) {
    int64_t i = global_thread();
    if (i >= n || !is_open(gate)) return;
    const Rates r = *(const Rates*)rates;
    const float norm = sqrtf(gate[1]), clip = norm > r.most ? r.most / norm : 1.f;
    float grad = clip * g[i] + r.l2 * w[i];
    m[i] = r.beta1 * m[i] + (1.f - r.beta1) * grad;
    v[i] = r.beta2 * v[i] + (1.f - r.beta2) * grad * grad;
    w[i] = r.keep * w[i] - r.lr * m[i] / (sqrtf(v[i]) * r.v_scale + r.eps);
}

// average += part (w - average).
extern "C" __global__ void average_f32(float* average, const float* w, int64_t n, const float* rates, const float* gate) {
    int64_t i = global_thread();
    if (i < n && is_open(gate)) average[i] += ((const Rates*)rates)->part * (w[i] - average[i]);
}
