// Kernels that do one thing right or wrong, for the tests of the emulator itself (tests/kernels.rs). `right` is 1 or 0.
#include "cp_async.cuh"

// A neighbour's value out of shared memory.
extern "C" __global__ void probe_shared(float* y, int right) {
    __shared__ float s[64];
    s[threadIdx.x] = (float)threadIdx.x;
    if (right) __syncthreads();
    y[blockIdx.x * 64 + threadIdx.x] = s[(threadIdx.x + 33) % 64];
}

// Shared memory that is written again before everybody has read it.
extern "C" __global__ void probe_reuse(float* y, int right) {
    DYN_SHARED(float, s);
    float sum = 0.f;
    for (int i = 0; i < 3; ++i) {
        s[threadIdx.x] = (float)(threadIdx.x + i);
        __syncthreads();
        sum += s[63 - threadIdx.x];
        if (right) __syncthreads();
    }
    y[blockIdx.x * 64 + threadIdx.x] = sum;
}

// A neighbour's value within a warp: __syncwarp orders memory, a shuffle does not.
extern "C" __global__ void probe_warp(float* y, int right) {
    __shared__ float s[64];
    s[threadIdx.x] = (float)threadIdx.x;
    float zero = __shfl_xor_sync(0xffffffffu, 0.f, 1);
    if (right) __syncwarp();
    y[blockIdx.x * 64 + threadIdx.x] = zero + s[threadIdx.x ^ 1];
}

// Blocks that write the same words of global memory, or each its own.
extern "C" __global__ void probe_blocks(float* y, int right) {
    y[(right ? blockIdx.x * 64 : 0) + threadIdx.x] = (float)blockIdx.x;
}

// A sum over all threads, with an atomic or without.
extern "C" __global__ void probe_sum(float* y, int right) {
    if (right) atomicAdd(y, 1.f);
    else y[0] += 1.f;
}

// A copy that is waited for before or behind the barrier.
extern "C" __global__ void probe_copy(float* y, int right) {
    DYN_SHARED(float, s);
    const int at = (int)(blockIdx.x * 64 + threadIdx.x);
    if (threadIdx.x < 16) copy_async(s + threadIdx.x * 4, y + at / 64 * 64 + threadIdx.x * 4, true);
    copies_commit();
    if (right) copies_wait<0>();
    __syncthreads();
    y[at] = s[63 - threadIdx.x] + 1.f;
    copies_wait<0>();
}
