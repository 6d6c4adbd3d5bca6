// Rows out of a replay buffer, some of them started anew, and back into it (src/ops/replay_buffer.rs). A chain touches the
// buffer in its first and its last launch. Taking cannot be part of the first step, because the network's gradient at the
// row lies between; the launch that takes also draws: which rows start anew, and the noise that they start from. Putting back is part
// of the last step where a chain ends with it (langevin.cu), and stands here for chains that do not.
// Bytes per number of size e: 2 e taken (e where a row starts anew, and then a quarter of ten Philox rounds), 2 e put (the
// check reads it once more, from cache); no flops otherwise. Bound: memory.
#include "block.cuh"
#include "math.cuh"
#include "philox.cuh"
#include "vec.cuh"

namespace {

// What a row that starts anew starts from.
template <class T>
__device__ __forceinline__ void noise_of(float (&v)[4], const Philox& draw, int64_t at, int normal) {
    constexpr int BITS = RandomBits<T>::BITS;
    const uint4 w = draw.words((uint32_t)(at / 4));
    if (normal) {
        normal_pair(w.x, w.y, v[0], v[1]);
        normal_pair(w.z, w.w, v[2], v[3]);
    } else {
        v[0] = uniform<BITS>(w.x), v[1] = uniform<BITS>(w.y), v[2] = uniform<BITS>(w.z), v[3] = uniform<BITS>(w.w);
    }
}

// Four numbers per thread, of one row where n allows and of up to four where it does not.
template <class T>
__device__ void take(T* y, const T* buffer, const int* slots, int64_t count, int64_t n, int size, int normal,
                     uint64_t threshold, const Philox& fresh, const Philox& noise) {
    const int64_t at = 4 * global_thread();
    if (at >= count) return;
    int64_t row = at / n, column = at % n;
    int slot = slots[row];
    bool anew = fresh.word(row) < threshold, inside = slot >= 0 && slot < size;
    Vec<T, 4> out;
    float v[4];
    if (n % 4 == 0 && !anew && inside) {
        out = load_vec<4>(buffer + slot * n + column);
    } else {
        bool drawn = false;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (at + i >= count) break;
            if (anew && !drawn) noise_of<T>(v, noise, at, normal), drawn = true;
            out.v[i] = anew ? store<T>(v[i]) : inside ? buffer[slot * n + column] : store<T>(NAN);
            if (++column == n && at + i + 1 < count) {
                column = 0, slot = slots[++row];
                anew = fresh.word(row) < threshold, inside = slot >= 0 && slot < size;
            }
        }
    }
    if (at + 4 <= count) return store_vec<4>(y + at, out);
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (at + i < count) y[at + i] = out.v[i];
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

extern "C" __global__ void replay_take_f32(float* y, const float* buffer, const int* slots, int64_t count, int64_t n,
        int size, int normal, uint64_t threshold, Philox fresh, Philox noise) {
    take(y, buffer, slots, count, n, size, normal, threshold, fresh, noise);
}
extern "C" __global__ void replay_take_bf16(bf16* y, const bf16* buffer, const int* slots, int64_t count, int64_t n,
        int size, int normal, uint64_t threshold, Philox fresh, Philox noise) {
    take(y, buffer, slots, count, n, size, normal, threshold, fresh, noise);
}
extern "C" __global__ void replay_take_f16(f16* y, const f16* buffer, const int* slots, int64_t count, int64_t n,
        int size, int normal, uint64_t threshold, Philox fresh, Philox noise) {
    take(y, buffer, slots, count, n, size, normal, threshold, fresh, noise);
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
