// Passes over rows of channels, and sums of columns: a block's threads keep to their channels while they walk down
// the rows, so sums stay in registers until the end and their order depends on the launch alone.
#pragma once
#include "vec.cuh"

constexpr int COLUMN_THREADS = 256;

// A thread's channels [c, c + V) and its rows: first, first + step, ... In the grid, y runs over groups of channels.
template <int V>
struct Walk {
    int c, across;
    int64_t first, step;
    bool active;
    __device__ explicit Walk(int channels) {
        const int all = channels / V, offset = blockIdx.y * COLUMN_THREADS;
        across = all - offset < COLUMN_THREADS ? all - offset : COLUMN_THREADS;
        const int down = COLUMN_THREADS / across;
        c = (offset + threadIdx.x % across) * V;
        first = (int64_t)blockIdx.x * down + threadIdx.x / across;
        step = (int64_t)gridDim.x * down;
        active = (int)threadIdx.x < across * down;
    }

    // Adds sums[i] of all threads with the same channels into to[c + i]. All threads call it.
    __device__ __forceinline__ void add(float* to, const float (&sums)[V]) const {
        __shared__ float all[V][COLUMN_THREADS];
        __syncthreads();
#pragma unroll
        for (int i = 0; i < V; ++i) all[i][threadIdx.x] = sums[i];
        __syncthreads();
        if ((int)threadIdx.x >= across) return;
#pragma unroll
        for (int i = 0; i < V; ++i) {
            float sum = 0.f;
            for (int t = threadIdx.x; t < COLUMN_THREADS / across * across; t += across) sum += all[i][t];
            to[c + i] = sum;
        }
    }
};
