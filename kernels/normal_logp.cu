// log N(z; 0, 1) summed over each example, and its gradient (src/ops/normal_logp.rs).
// Bytes per element of size e: e forward, 2 e backward; 2 flops and 1. Bound: memory.
#include "block.cuh"

namespace {

constexpr float HALF_LN_TAU = 0.91893853f;

// One block per example of d numbers.
template <class T>
__device__ void forward(T* nats, const T* z, int64_t d) {
    __shared__ float scratch[32];
    const T* row = z + blockIdx.x * d;
    float sum = 0.f;
    if (d % Pack<T>::WIDTH == 0) {
        for (int64_t at = threadIdx.x * Pack<T>::WIDTH; at < d; at += blockDim.x * Pack<T>::WIDTH) {
            const Pack<T> pack = *reinterpret_cast<const Pack<T>*>(row + at);
#pragma unroll
            for (int i = 0; i < Pack<T>::WIDTH; ++i) sum = fmaf(load(pack.v[i]), load(pack.v[i]), sum);
        }
    } else {
        for (int64_t at = threadIdx.x; at < d; at += blockDim.x) sum = fmaf(load(row[at]), load(row[at]), sum);
    }
    sum = block_reduce(sum, Sum(), scratch);
    if (threadIdx.x == 0) nats[blockIdx.x] = store<T>(-0.5f * sum - (float)d * HALF_LN_TAU);
}

// dz = -g z, one pack per thread.
template <class T>
__device__ void backward(T* dz, const T* g, const T* z, int64_t n, int64_t d) {
    const int64_t at = first_element<T>();
    if (at >= n) return;
    Pack<T> pack = load_pack(z, at, n);
#pragma unroll
    for (int i = 0; i < Pack<T>::WIDTH; ++i)
        if (at + i < n) pack.v[i] = store<T>(-load(g[(at + i) / d]) * load(pack.v[i]));
    store_pack(dz, at, n, pack);
}

}  // namespace

extern "C" __global__ void normal_logp_forward_f32(float* nats, const float* z, int64_t d) {
    forward(nats, z, d);
}
extern "C" __global__ void normal_logp_forward_bf16(bf16* nats, const bf16* z, int64_t d) {
    forward(nats, z, d);
}
extern "C" __global__ void normal_logp_forward_f16(f16* nats, const f16* z, int64_t d) {
    forward(nats, z, d);
}

extern "C" __global__ void normal_logp_backward_f32(float* dz, const float* g, const float* z, int64_t n, int64_t d) {
    backward(dz, g, z, n, d);
}
extern "C" __global__ void normal_logp_backward_bf16(bf16* dz, const bf16* g, const bf16* z, int64_t n, int64_t d) {
    backward(dz, g, z, n, d);
}
extern "C" __global__ void normal_logp_backward_f16(f16* dz, const f16* g, const f16* z, int64_t n, int64_t d) {
    backward(dz, g, z, n, d);
}
