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

// The first i < n at which the running sum of weight(i) >= 0 passes u times the sum of all, by a full warp; never one of weight 0.
// -1 when there is no sum above 0, or no finite one. Every lane gets it.
template <class Weight>
__device__ __forceinline__ int warp_pick(int n, double u, Weight weight) {
    const int lane = threadIdx.x % 32;
    auto at_lane = [&](int at) { return at + lane < n ? weight(at + lane) : 0.; };
    // Running sums over the lanes, each with its own.
    auto running = [&](double v) {
#pragma unroll
        for (int o = 1; o < 32; o *= 2) {
            const double before = __shfl_up_sync(0xffffffffu, v, o);
            if (lane >= o) v += before;
        }
        return v;
    };
    double total = 0.;
    for (int at = 0; at < n; at += 32) total += __shfl_sync(0xffffffffu, running(at_lane(at)), 31);
    if (!(total > 0. && total < INFINITY)) return -1;
    int found = -1;
    double before = 0.;
    for (int at = 0; at < n; at += 32) {
        const double p = at_lane(at), sum = before + running(p);
        const uint32_t past = __ballot_sync(0xffffffffu, p > 0. && sum > u * total);
        const uint32_t possible = __ballot_sync(0xffffffffu, p > 0.);
        if (past) return at + __ffs((int)past) - 1;
        if (possible) found = at + 31 - __clz((int)possible);
        before = __shfl_sync(0xffffffffu, sum, 31);
    }
    return found;
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
