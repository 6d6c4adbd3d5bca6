// Sums and maxima over the middle of (outer, reduced, inner), in f32, in an order that depends on the sizes
// alone. Bytes: one read of x (4 per element at f32); flops: 1 per element. Bound: memory.
#include "block.cuh"

// inner = 1: a block takes elements [part * length, + length) of one row; y is (outer, parts).
template <class T, class Op>
__device__ void rows(float* y, const T* x, int64_t reduced, int64_t length, int parts, Op op) {
    __shared__ float scratch[32];
    int64_t outer = blockIdx.x / parts, part = blockIdx.x % parts;
    int64_t end = (part + 1) * length < reduced ? (part + 1) * length : reduced;
    float v = Op::START;
    for (int64_t i = part * length + threadIdx.x; i < end; i += blockDim.x)
        v = op(v, load(x[outer * reduced + i]));
    v = block_reduce(v, op, scratch);
    if (threadIdx.x == 0) y[blockIdx.x] = v;
}

// inner > 1: a block of 32 columns by 8 lanes takes rows [part * length, + length) of one `outer`; y is
// (outer, parts, inner).
template <class T, class Op>
__device__ void columns(float* y, const T* x, int64_t reduced, int64_t inner, int64_t length, Op op) {
    __shared__ float tile[8][33];
    int tx = threadIdx.x, ty = threadIdx.y;
    int64_t tiles = (inner + 31) / 32, outer = blockIdx.x / tiles, column = blockIdx.x % tiles * 32 + tx;
    int64_t part = blockIdx.y, parts = gridDim.y;
    int64_t end = (part + 1) * length < reduced ? (part + 1) * length : reduced;
    float v = Op::START;
    if (column < inner)
        for (int64_t r = part * length + ty; r < end; r += 8)
            v = op(v, load(x[(outer * reduced + r) * inner + column]));
    tile[ty][tx] = v;
    __syncthreads();
    if (ty == 0 && column < inner) {
        for (int i = 1; i < 8; ++i) v = op(v, tile[i][tx]);
        y[(outer * parts + part) * inner + column] = v;
    }
}

template <class T>
__device__ void reduce_rows(float* y, const T* x, int64_t reduced, int64_t length, int parts, int maximum) {
    if (maximum) rows(y, x, reduced, length, parts, Max());
    else rows(y, x, reduced, length, parts, Sum());
}

template <class T>
__device__ void reduce_columns(float* y, const T* x, int64_t reduced, int64_t inner, int64_t length,
                               int maximum) {
    if (maximum) columns(y, x, reduced, inner, length, Max());
    else columns(y, x, reduced, inner, length, Sum());
}

extern "C" __global__ void reduce_rows_f32(float* y, const float* x, int64_t reduced, int64_t length,
                                           int parts, int maximum) {
    reduce_rows(y, x, reduced, length, parts, maximum);
}
extern "C" __global__ void reduce_rows_bf16(float* y, const bf16* x, int64_t reduced, int64_t length,
                                            int parts, int maximum) {
    reduce_rows(y, x, reduced, length, parts, maximum);
}
extern "C" __global__ void reduce_rows_f16(float* y, const f16* x, int64_t reduced, int64_t length, int parts,
                                           int maximum) {
    reduce_rows(y, x, reduced, length, parts, maximum);
}
extern "C" __global__ void reduce_columns_f32(float* y, const float* x, int64_t reduced, int64_t inner,
                                              int64_t length, int maximum) {
    reduce_columns(y, x, reduced, inner, length, maximum);
}
extern "C" __global__ void reduce_columns_bf16(float* y, const bf16* x, int64_t reduced, int64_t inner,
                                               int64_t length, int maximum) {
    reduce_columns(y, x, reduced, inner, length, maximum);
}
extern "C" __global__ void reduce_columns_f16(float* y, const f16* x, int64_t reduced, int64_t inner,
                                              int64_t length, int maximum) {
    reduce_columns(y, x, reduced, inner, length, maximum);
}
