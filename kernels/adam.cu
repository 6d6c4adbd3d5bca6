// One Adam step of a tensor with everything in f32, and the moving average of its weights; formulas in
// src/train/optim.rs.
// Bytes: w, m, v read and written, g read, the average read and written: 28 per element, 36 with an average;
// flops: 15. Bound: memory.
#include "elem.cuh"

// As `DeviceRates` in src/train/optim.rs.
struct Rates {
    float beta1, beta2, lr, v_scale, eps, keep, l2, clip;
};

// One element per thread: neighbouring threads touch neighbouring words of every array.
extern "C" __global__ void adam_f32(float* w, float* m, float* v, const float* g, int64_t n, Rates r) {
    int64_t i = global_thread();
    if (i >= n) return;
    float grad = r.clip * g[i] + r.l2 * w[i];
    m[i] = r.beta1 * m[i] + (1.f - r.beta1) * grad;
    v[i] = r.beta2 * v[i] + (1.f - r.beta2) * grad * grad;
    w[i] = r.keep * w[i] - r.lr * m[i] / (sqrtf(v[i]) * r.v_scale + r.eps);
}

// average += part (w - average).
extern "C" __global__ void average_f32(float* average, const float* w, int64_t n, float part) {
    int64_t i = global_thread();
    if (i < n) average[i] += part * (w[i] - average[i]);
}
