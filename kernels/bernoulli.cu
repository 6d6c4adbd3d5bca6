// Log-likelihood of Bernoulli values given logits, `samples` rows of logits per observation, and its gradients
// (src/ops/bernoulli.rs).
// Bytes per logit of size e: e forward (x comes from cache for all but the first of its samples), 2 e backward; about 15
// flops. Bound: memory.
#include "block.cuh"

namespace {

// One block per row of logits.
template <class T>
__device__ void forward(T* nats, const T* logits, const T* x, int64_t d, int samples) {
    __shared__ float scratch[32];
    const T *l = logits + blockIdx.x * d, *v = x + blockIdx.x / samples * d;
    float sum = 0.f;
    for (int64_t i = threadIdx.x; i < d; i += blockDim.x) {
        const float logit = load(l[i]);
        sum += fmaf(load(v[i]), logit, -softplus(logit));
    }
    sum = block_reduce(sum, Sum(), scratch);
    if (threadIdx.x == 0) nats[blockIdx.x] = store<T>(sum);
}

// d logits = g (x - sigmoid(logit)).
template <class T>
__device__ void backward(T* dl, const T* g, const T* logits, const T* x, int64_t n, int64_t d, int samples) {
    const int64_t at = global_thread();
    if (at >= n) return;
    const int64_t row = at / d;
    const float value = load(x[row / samples * d + at % d]);
    dl[at] = store<T>(load(g[row]) * (value - sigmoid(load(logits[at]))));
}

// dx = the sum over samples of g logit; one thread per number of x.
template <class T>
__device__ void values(T* dx, const T* g, const T* logits, int64_t n, int64_t d, int samples) {
    const int64_t at = global_thread();
    if (at >= n) return;
    const int64_t first = at / d * samples;
    float sum = 0.f;
    for (int s = 0; s < samples; ++s) sum = fmaf(load(g[first + s]), load(logits[(first + s) * d + at % d]), sum);
    dx[at] = store<T>(sum);
}

}  // namespace

extern "C" __global__ void bernoulli_forward_f32(float* nats, const float* logits, const float* x, int64_t d,
        int samples) {
    forward(nats, logits, x, d, samples);
}
extern "C" __global__ void bernoulli_forward_bf16(bf16* nats, const bf16* logits, const bf16* x, int64_t d,
        int samples) {
    forward(nats, logits, x, d, samples);
}
extern "C" __global__ void bernoulli_forward_f16(f16* nats, const f16* logits, const f16* x, int64_t d, int samples) {
    forward(nats, logits, x, d, samples);
}

extern "C" __global__ void bernoulli_backward_f32(float* dl, const float* g, const float* logits, const float* x,
        int64_t n, int64_t d, int samples) {
    backward(dl, g, logits, x, n, d, samples);
}
extern "C" __global__ void bernoulli_backward_bf16(bf16* dl, const bf16* g, const bf16* logits, const bf16* x,
        int64_t n, int64_t d, int samples) {
    backward(dl, g, logits, x, n, d, samples);
}
extern "C" __global__ void bernoulli_backward_f16(f16* dl, const f16* g, const f16* logits, const f16* x, int64_t n,
        int64_t d, int samples) {
    backward(dl, g, logits, x, n, d, samples);
}

extern "C" __global__ void bernoulli_values_f32(float* dx, const float* g, const float* logits, int64_t n, int64_t d,
        int samples) {
    values(dx, g, logits, n, d, samples);
}
extern "C" __global__ void bernoulli_values_bf16(bf16* dx, const bf16* g, const bf16* logits, int64_t n, int64_t d,
        int samples) {
    values(dx, g, logits, n, d, samples);
}
extern "C" __global__ void bernoulli_values_f16(f16* dx, const f16* g, const f16* logits, int64_t n, int64_t d,
        int samples) {
    values(dx, g, logits, n, d, samples);
}
