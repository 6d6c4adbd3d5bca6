// Rows out of a replay buffer, some of them started anew, and back into it (src/ops/replay_buffer.rs). Taking is no part of a
// Langevin step, because the gradient needs the row before the first one; putting back is part of the last one where a chain
// ends with it (langevin.cu), and stands here for chains that do not.
// Bytes per number of size e: 2 e taken, 2 e put (the check reads it once more, from cache); no flops. Bound: memory.
#include "block.cuh"

namespace {

template <class T>
__device__ void take(T* y, const T* buffer, const int* slots, const T* fresh, const T* start, int64_t count, int64_t n,
                     int size) {
    const int64_t at = global_thread();
    if (at >= count) return;
    const int64_t row = at / n;
    const int slot = slots[row];
    if (load(fresh[row]) != 0.f) y[at] = start[at];
    else y[at] = slot >= 0 && slot < size ? buffer[slot * n + at % n] : store<T>(NAN);
}

// One block per row.
template <class T>
__device__ void put(T* buffer, const int* slots, const T* rows, int64_t n, int size) {
    const int slot = slots[blockIdx.x];
    const T* row = rows + blockIdx.x * n;
    int finite = slot >= 0 && slot < size;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) finite = finite && fabsf(load(row[i])) < INFINITY;
    if (!__syncthreads_and(finite)) return;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) buffer[slot * n + i] = row[i];
}

}  // namespace

extern "C" __global__ void replay_take_f32(float* y, const float* buffer, const int* slots, const float* fresh,
        const float* start, int64_t count, int64_t n, int size) {
    take(y, buffer, slots, fresh, start, count, n, size);
}
extern "C" __global__ void replay_take_bf16(bf16* y, const bf16* buffer, const int* slots, const bf16* fresh,
        const bf16* start, int64_t count, int64_t n, int size) {
    take(y, buffer, slots, fresh, start, count, n, size);
}
extern "C" __global__ void replay_take_f16(f16* y, const f16* buffer, const int* slots, const f16* fresh,
        const f16* start, int64_t count, int64_t n, int size) {
    take(y, buffer, slots, fresh, start, count, n, size);
}

extern "C" __global__ void replay_put_f32(float* buffer, const int* slots, const float* rows, int64_t n, int size) {
    put(buffer, slots, rows, n, size);
}
extern "C" __global__ void replay_put_bf16(bf16* buffer, const int* slots, const bf16* rows, int64_t n, int size) {
    put(buffer, slots, rows, n, size);
}
extern "C" __global__ void replay_put_f16(f16* buffer, const int* slots, const f16* rows, int64_t n, int size) {
    put(buffer, slots, rows, n, size);
}
