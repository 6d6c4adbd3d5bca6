// What is made of the squared distances d_ij = |x_i|² − 2 x_i·y_j + |y_j|² between the rows of x (N, D) and y (M, D): the few
// nearest rows y of each x, and log sums of Gaussian kernels (src/ops/distances.rs). The matrix never leaves shared memory: a
// block holds 64 rows x, meets its part of the rows y in tiles of 64 x 64, and a warp looks at a line of a tile at a time.
// Bytes: (N + M ceil(N / 64)) D elements, nearly all of them from L2; 2 N M D flops on the FMA units (tensor cores for the half
// types), and 64 bytes of shared memory per 32 distances. Bound: FMA units, with few columns the selection.
#include "tile.cuh"

namespace {

constexpr int LINES = 64, PITCH = LINES + 4, WARPS = TILE_THREADS / 32;
constexpr uint32_t ALL = 0xffffffffu;

template <class T>
struct Distances {
    // D is a multiple of V, so that rows are read in vectors.
    static constexpr int V = 16 / sizeof(T);
    using Product = Tile<T, LINES, ALONG_K, ALONG_K, V, V>;
    static constexpr int OWN = LINES * PITCH * sizeof(float), BYTES = Product::BYTES > OWN ? Product::BYTES : OWN;

    const T *x, *y;
    const float *xx, *yy;
    int n, m, d, length;

    __device__ __forceinline__ int row0() const { return blockIdx.x * LINES; }

    // f(j0) with the distances from y_j0, y_j0+1, ... in `tile`; infinite outside of the matrix.
    template <class F>
    __device__ __forceinline__ void each_tile(float* tile, const F& f) const {
        const int first = blockIdx.y * length, last = min(first + length, m);
        auto queries = [&](int row, int k) {
            const int i = row0() + row;
            return i < n && k < d ? load_vec<V>(x + (int64_t)i * d + k) : zero_vec<V, T>();
        };
        for (int j0 = first; j0 < last; j0 += LINES) {
            auto rows = [&](int col, int k) {
                const int j = j0 + col;
                return j < last && k < d ? load_vec<V>(y + (int64_t)j * d + k) : zero_vec<V, T>();
            };
            Product product(tile);
            product.run(queries, rows, 0, d);
            auto distance = [&](int row, int col, float dot) {
                const int i = row0() + row, j = j0 + col;
                return i < n && j < last ? fmaf(-2.f, dot, yy[j]) + xx[i] : INFINITY;
            };
            product.each_pair([&](int row, int col, float a, float b) {
                tile[row * PITCH + col] = distance(row, col, a);
                tile[row * PITCH + col + 1] = distance(row, col + 1, b);
            });
            __syncthreads();
            f(j0);
            __syncthreads();
        }
    }
};

// Puts (d, j) behind what is not greater in a list of c, ascending; the last one falls out. All lanes of the warp call it.
__device__ __forceinline__ void insert(float* list, int* names, int c, float d, int j) {
    for (int at = (c - 1) / 32 * 32; at >= 0; at -= 32) {
        const int i = at + threadIdx.x % 32;
        const float here = i < c ? list[i] : -INFINITY, before = i < c && i > 0 ? list[i - 1] : -INFINITY;
        const int name = i < c && i > 0 ? names[i - 1] : j;
        __syncwarp();
        if (here > d) {
            list[i] = before > d ? before : d;
            names[i] = before > d ? name : j;
        }
        __syncwarp();
    }
}

template <class T>
__device__ void nearest(float* out, int* names, const Distances<T>& distances, int c) {
    DYN_SHARED(unsigned char, memory);
    float* tile = reinterpret_cast<float*>(memory);
    float* lists = reinterpret_cast<float*>(memory + Distances<T>::BYTES);
    int* rows = reinterpret_cast<int*>(lists + LINES * c);
    for (int i = threadIdx.x; i < LINES * c; i += TILE_THREADS) {
        lists[i] = INFINITY;
        rows[i] = -1;
    }
    __syncthreads();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    distances.each_tile(tile, [&](int j0) {
        for (int q = warp; q < LINES; q += WARPS) {
            float limit = lists[q * c + c - 1];
            for (int at = 0; at < LINES; at += 32) {
                const float mine = tile[q * PITCH + at + lane];
                uint32_t near = __ballot_sync(ALL, mine < limit);
                while (near) {
                    const int from = __ffs((int)near) - 1;
                    near &= near - 1;
                    const float d = __shfl_sync(ALL, mine, from);
                    if (d < limit) {
                        insert(lists + q * c, rows + q * c, c, d, j0 + at + from);
                        limit = lists[q * c + c - 1];
                    }
                }
            }
        }
    });
    for (int i = threadIdx.x; i < LINES * c; i += TILE_THREADS) {
        const int row = distances.row0() + i / c;
        if (row >= distances.n) break;
        const int64_t to = ((int64_t)row * gridDim.y + blockIdx.y) * c + i % c;
        out[to] = lists[i];
        names[to] = rows[i];
    }
}

// log sum_j exp(-scale d_ij) over this block's part of the rows y, to out (parts, N).
template <class T>
__device__ void kernel_log_sum(float* out, const Distances<T>& distances, float scale) {
    DYN_SHARED(unsigned char, memory);
    float* tile = reinterpret_cast<float*>(memory);
    // The smallest distance so far, and the sum relative to its term.
    __shared__ float leasts[LINES], sums[LINES];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int q = warp; q < LINES; q += WARPS)
        if (lane == 0) leasts[q] = INFINITY, sums[q] = 0.f;
    __syncwarp();
    distances.each_tile(tile, [&](int) {
        for (int q = warp; q < LINES; q += WARPS) {
            if (distances.row0() + q >= distances.n) break;
            const float a = fmaxf(tile[q * PITCH + lane], 0.f), b = fmaxf(tile[q * PITCH + lane + 32], 0.f);
            const float old = leasts[q], least = fminf(old, -warp_reduce(-fminf(a, b), Max()));
            const float part = warp_reduce(expf(scale * (least - a)) + expf(scale * (least - b)), Sum());
            const float kept = old < INFINITY ? sums[q] * expf(scale * (least - old)) : 0.f;
            __syncwarp();
            if (lane == 0) leasts[q] = least, sums[q] = kept + part;
            __syncwarp();
        }
    });
    for (int q = warp; q < LINES; q += WARPS) {
        const int row = distances.row0() + q;
        if (lane == 0 && row < distances.n)
            out[(int64_t)blockIdx.y * distances.n + row] = logf(sums[q]) - scale * leasts[q];
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(128, 4) nearest_f32(float* out, int* names, const float* x, const float* y,
        const float* xx, const float* yy, int n, int m, int d, int length, int c) {
    nearest<float>(out, names, {x, y, xx, yy, n, m, d, length}, c);
}
extern "C" __global__ void __launch_bounds__(128, 4) nearest_bf16(float* out, int* names, const bf16* x, const bf16* y,
        const float* xx, const float* yy, int n, int m, int d, int length, int c) {
    nearest<bf16>(out, names, {x, y, xx, yy, n, m, d, length}, c);
}
extern "C" __global__ void __launch_bounds__(128, 4) nearest_f16(float* out, int* names, const f16* x, const f16* y,
        const float* xx, const float* yy, int n, int m, int d, int length, int c) {
    nearest<f16>(out, names, {x, y, xx, yy, n, m, d, length}, c);
}

// The c smallest of each row's `parts` lists (N, parts, c), each ascending; a warp takes a row. Bytes: 8 N parts c. Bound: memory.
extern "C" __global__ void __launch_bounds__(128) nearest_merged(float* out, int* names, const float* lists,
        const int* rows, int n, int parts, int c) {
    DYN_SHARED(float, memory);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = blockIdx.x * WARPS + warp;
    if (row >= n) return;
    float* list = memory + warp * 2 * c;
    int* found = reinterpret_cast<int*>(list + c);
    const int64_t from = (int64_t)row * parts * c;
    for (int i = lane; i < c; i += 32) {
        list[i] = lists[from + i];
        found[i] = rows[from + i];
    }
    __syncwarp();
    for (int part = 1; part < parts; ++part)
        for (int i = 0; i < c; ++i) {
            const float d = lists[from + part * c + i];
            if (!(d < list[c - 1])) break;
            insert(list, found, c, d, rows[from + part * c + i]);
        }
    for (int i = lane; i < c; i += 32) {
        out[(int64_t)row * c + i] = list[i];
        names[(int64_t)row * c + i] = found[i];
    }
}

extern "C" __global__ void __launch_bounds__(128, 4) kernel_log_sum_f32(float* out, const float* x, const float* y,
        const float* xx, const float* yy, int n, int m, int d, int length, float scale) {
    kernel_log_sum<float>(out, {x, y, xx, yy, n, m, d, length}, scale);
}
extern "C" __global__ void __launch_bounds__(128, 4) kernel_log_sum_bf16(float* out, const bf16* x, const bf16* y,
        const float* xx, const float* yy, int n, int m, int d, int length, float scale) {
    kernel_log_sum<bf16>(out, {x, y, xx, yy, n, m, d, length}, scale);
}
extern "C" __global__ void __launch_bounds__(128, 4) kernel_log_sum_f16(float* out, const f16* x, const f16* y,
        const float* xx, const float* yy, int n, int m, int d, int length, float scale) {
    kernel_log_sum<f16>(out, {x, y, xx, yy, n, m, d, length}, scale);
}
