// Rotary positions of packed queries, keys and values, qkv (B, T, 3 D), and their adjoint (src/ops/rotary.rs). A block
// takes one position of all sequences: its cosines and sines are made once, in f64, in shared memory.
// Bytes per number of size e: 2 e; 3 flops, and E / 2 f64 powers, cosines and sines per block. Bound: memory.
#include "elem.cuh"

namespace {

// Dynamic shared memory: E / 2 pairs of floats.
template <class T>
__device__ void turn(T* y, const T* x, int batch, int time, int heads, int each, double base, int reverse) {
    DYN_SHARED(float2, turns);
    const int half = each / 2, t = blockIdx.x, width = 3 * heads * each;
    for (int i = threadIdx.x; i < half; i += blockDim.x) {
        const double angle = (double)t * pow(base, -2. * i / each);
        double s, c;
        sincospi(angle * 0.31830988618379067154, &s, &c);
        turns[i] = make_float2((float)c, (float)(reverse ? -s : s));
    }
    __syncthreads();
    const int pairs = heads * each;  // of queries and keys
    for (int b = 0; b < batch; ++b) {
        const T* from = x + ((int64_t)b * time + t) * width;
        T* to = y + ((int64_t)b * time + t) * width;
        for (int p = threadIdx.x; p < pairs; p += blockDim.x) {
            const int at = p / half * each + p % half;
            const float2 turn = turns[p % half];
            const float first = load(from[at]), second = load(from[at + half]);
            to[at] = store<T>(first * turn.x - second * turn.y);
            to[at + half] = store<T>(first * turn.y + second * turn.x);
        }
        for (int i = width / 3 * 2 + threadIdx.x; i < width; i += blockDim.x) to[i] = from[i];
    }
}

}  // namespace

extern "C" __global__ void rotary_f32(float* y, const float* x, int batch, int time, int heads, int each, double base,
        int reverse) {
    turn(y, x, batch, time, heads, each, base, reverse);
}
extern "C" __global__ void rotary_bf16(bf16* y, const bf16* x, int batch, int time, int heads, int each, double base,
        int reverse) {
    turn(y, x, batch, time, heads, each, base, reverse);
}
extern "C" __global__ void rotary_f16(f16* y, const f16* x, int batch, int time, int heads, int each, double base,
        int reverse) {
    turn(y, x, batch, time, heads, each, base, reverse);
}
