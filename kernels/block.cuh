// Reductions over a warp and a block, in an order that depends on the block size alone.
#pragma once
#include "elem.cuh"

struct Sum {
    static constexpr float START = 0.f;
    __device__ __forceinline__ float operator()(float a, float b) const { return a + b; }
};

// A NaN counts as nothing, as in the reductions of the CPU.
struct Max {
    static constexpr float START = -INFINITY;
    __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

// Every lane of a full warp gets the result.
template <class Op>
__device__ __forceinline__ float warp_reduce(float v, Op op) {
#pragma unroll
    for (int o = 16; o > 0; o >>= 1) v = op(v, __shfl_xor_sync(0xffffffffu, v, o));
    return v;
}

// Every thread of the block gets the result. The block is whole warps; `scratch` is shared memory of 32
// floats, free again when the function returns.
template <class Op>
__device__ __forceinline__ float block_reduce(float v, Op op, float* scratch) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    v = warp_reduce(v, op);
    if (warps == 1) return v;
    if (lane == 0) scratch[warp] = v;
    __syncthreads();
    v = warp_reduce(lane < warps ? scratch[lane] : Op::START, op);
    __syncthreads();
    return v;
}
