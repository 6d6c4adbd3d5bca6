// Log-probabilities over rows of k logits, as src/ops/softmax.rs: logsumexp, log_softmax and cross entropy.
// A row's maximum and ln sum e^(x - maximum) are kept apart as its level (rows, 2), in f32.
// Bytes: one read of x (the second is in cache), plus one write of (rows, k) for log_softmax and every
// backward; about 20 flops per element. Bound: memory.
#include "block.cuh"

// In the order of `Mode` in src/ops/softmax.rs.
enum Mode { LOGSUMEXP, LOG_SOFTMAX, CROSS_ENTROPY };

// One block per row. y: (rows), or (rows, k) for log_softmax.
template <class T>
__device__ void forward(T* y, float* levels, const T* x, const int* targets, int k, int mode) {
    __shared__ float scratch[32];
    int64_t r = blockIdx.x;
    const T* row = x + r * k;
    float top = -3.402823466e38f;
    for (int i = threadIdx.x; i < k; i += blockDim.x) top = fmaxf(top, load(row[i]));
    top = block_reduce(top, Max(), scratch);
    float sum = 0.f;
    for (int i = threadIdx.x; i < k; i += blockDim.x) sum += expf(load(row[i]) - top);
    float log_sum = logf(block_reduce(sum, Sum(), scratch));
    if (threadIdx.x == 0) {
        levels[2 * r] = top, levels[2 * r + 1] = log_sum;
        if (mode == LOGSUMEXP) y[r] = store<T>(top + log_sum);
        if (mode == CROSS_ENTROPY) {
            int t = targets[r];
            y[r] = store<T>(t >= 0 && t < k ? log_sum - (load(row[t]) - top) : NAN);
        }
    }
    if (mode == LOG_SOFTMAX)
        for (int i = threadIdx.x; i < k; i += blockDim.x)
            y[r * k + i] = store<T>(load(row[i]) - top - log_sum);
}

// dx: g p (logsumexp), g - p sum(g) (log_softmax, g (rows, k)), g (p - onehot) (cross entropy). One block per
// row.
template <class T>
__device__ void backward(T* dx, const T* x, const float* levels, const T* g, const int* targets, int k,
                         int mode) {
    __shared__ float scratch[32];
    int64_t r = blockIdx.x;
    float top = levels[2 * r], log_sum = levels[2 * r + 1], total = 0.f;
    if (mode == LOG_SOFTMAX) {
        for (int i = threadIdx.x; i < k; i += blockDim.x) total += load(g[r * k + i]);
        total = block_reduce(total, Sum(), scratch);
    } else {
        total = load(g[r]);
    }
    int target = mode == CROSS_ENTROPY ? targets[r] : -1;
    for (int i = threadIdx.x; i < k; i += blockDim.x) {
        float p = expf(load(x[r * k + i]) - top - log_sum);
        float d = mode == LOG_SOFTMAX ? load(g[r * k + i]) - p * total : total * (i == target ? p - 1.f : p);
        dx[r * k + i] = store<T>(d);
    }
}

extern "C" __global__ void softmax_forward_f32(float* y, float* levels, const float* x, const int* targets,
                                               int k, int mode) {
    forward(y, levels, x, targets, k, mode);
}
extern "C" __global__ void softmax_forward_bf16(bf16* y, float* levels, const bf16* x, const int* targets,
                                                int k, int mode) {
    forward(y, levels, x, targets, k, mode);
}
extern "C" __global__ void softmax_forward_f16(f16* y, float* levels, const f16* x, const int* targets, int k,
                                               int mode) {
    forward(y, levels, x, targets, k, mode);
}
extern "C" __global__ void softmax_backward_f32(float* dx, const float* x, const float* levels,
                                                const float* g, const int* targets, int k, int mode) {
    backward(dx, x, levels, g, targets, k, mode);
}
extern "C" __global__ void softmax_backward_bf16(bf16* dx, const bf16* x, const float* levels, const bf16* g,
                                                 const int* targets, int k, int mode) {
    backward(dx, x, levels, g, targets, k, mode);
}
extern "C" __global__ void softmax_backward_f16(f16* dx, const f16* x, const float* levels, const f16* g,
                                                const int* targets, int k, int mode) {
    backward(dx, x, levels, g, targets, k, mode);
}
