// Causal self-attention over packed queries, keys and values, qkv (B, T, 3 D), forward and backward, without the square of
// scores in memory (src/ops/attention.rs; Dao et al. 2022, "FlashAttention"). A block of 128 threads takes 64 queries
// (forward, dq) or 64 keys (dk, dv) of one head and walks over the other side in tiles of 64: scores, probabilities and
// their gradients live in shared memory, sums in registers (kernels/tile.cuh makes the products). Heads wider than 64
// numbers are done in parts of 64 columns (blockIdx.z), each of which makes the scores again.
//
// Per head of E numbers: 2 T^2 E flops forward, 7 T^2 E backward (5 and the scores twice more), T^2 / 2 exponentials each;
// 4 T E numbers forward, 9 T E backward, and every tile of the other side again, from L2: about T / 128 times T E
// numbers. Bytes: those, at e each. Bound: tensor cores for bf16 and f16, FMA for f32; for short sequences, memory.
// SASS: HMMA in attention_forward, attention_queries, attention_keys
#include "tile.cuh"

namespace {

constexpr int BLOCK = 64, PITCH = BLOCK + 4;

// As `Sizes` in src/ops/attention.rs.
struct Sizes {
    int time, heads, each;  // T, H, E
    float scale;            // 1 / sqrt(E)
};

// Rows of one head: E numbers at a pitch. Outside of them everything is zero.
template <class T, int V>
struct Head {
    T* base;
    int64_t pitch;
    int time, each;

    // Part `part` of the `parts` that are packed in a row.
    __device__ Head(T* all, const Sizes& d, int parts, int part) : pitch((int64_t)parts * d.heads * d.each), time(d.time), each(d.each) {
        const int b = blockIdx.y / d.heads, h = blockIdx.y % d.heads;
        base = all + b * d.time * pitch + ((int64_t)part * d.heads + h) * d.each;
    }
    // Numbers e, e + 1, ... of row t.
    __device__ __forceinline__ Vec<std::remove_const_t<T>, V> at(int t, int e) const {
        if (t < time && e < each) return load_vec<V>(base + t * pitch + e);
        return zero_vec<V, std::remove_const_t<T>>();
    }
};

template <class T, int V>
using Scores = Tile<T, BLOCK, ALONG_K, ALONG_K, V, V>;
// Products with probabilities on the left, from shared memory, as they are or turned.
template <class T, int V>
using Mixed = Tile<T, BLOCK, ALONG_K, ALONG_ROWS, 4, V>;
template <class T, int V>
using Turned = Tile<T, BLOCK, ALONG_ROWS, ALONG_ROWS, 4, V>;

constexpr int larger(int a, int b) { return a > b ? a : b; }
template <class T, int V>
constexpr int STAGING = larger(Scores<T, V>::BYTES, larger(Mixed<T, V>::BYTES, Turned<T, V>::BYTES));

// The shared memory of a block.
template <class T>
struct __align__(16) Room {
    unsigned char memory[larger(STAGING<T, 1>, STAGING<T, 4>)];
    float p[BLOCK * PITCH];
    float factors[BLOCK];
};

// Four neighbours of a row of the shared tile as T.
template <class T>
__device__ __forceinline__ Vec<T, 4> four(const float* row) {
    const Vec<float, 4> v = load_vec<4>(row);
    Vec<T, 4> out;
#pragma unroll
    for (int i = 0; i < 4; ++i) out.v[i] = store<T>(v.v[i]);
    return out;
}

// a_i . b_j for the rows from i0 and j0 on, handed to sink(i, j, value) with i and j in the tile.
template <class T, int V, class F>
__device__ __forceinline__ void products(void* memory, const Head<const T, V>& a, int i0, const Head<const T, V>& b, int j0,
                                         const F& sink) {
    Scores<T, V> tile(memory);
    tile.run([&](int i, int e) { return a.at(i0 + i, e); }, [&](int j, int e) { return b.at(j0 + j, e); }, 0, a.each);
    tile.each_pair([&](int i, int j, float v0, float v1) {
        sink(i, j, v0);
        sink(i, j + 1, v1);
    });
}

// Writes columns [column, column + 64) of a tile's rows, each times factor(row).
template <class Sum, class T, int V, class F>
__device__ __forceinline__ void give(const Sum& sum, const Head<T, V>& to, int row0, int column, const F& factor) {
    sum.each_pair([&](int i, int e, float v0, float v1) {
        if (row0 + i >= to.time) return;
        T* row = to.base + (row0 + i) * to.pitch + column;
        const float f = factor(i);
        if (column + e < to.each) row[e] = store<T>(v0 * f);
        if (column + e + 1 < to.each) row[e + 1] = store<T>(v1 * f);
    });
}

// y (B, T, D) and the level of each query, levels (B, H, T, 2): the largest score and 1 / sum e^(score - largest).
template <int V, class T>
__device__ void forward(Room<T>& room, T* y, float* levels, const T* qkv, const Sizes& d) {
    unsigned char* memory = room.memory;
    float *p = room.p, *factors = room.factors;
    const Head<const T, V> q(qkv, d, 3, 0), k(qkv, d, 3, 1), v(qkv, d, 3, 2);
    const int i0 = blockIdx.x * BLOCK, column = blockIdx.z * BLOCK;
    // Two threads per row, each every other column.
    const int row = threadIdx.x / 2, odd = threadIdx.x % 2;
    float top = -INFINITY, sum = 0.f;
    Mixed<T, V> out(memory);
    for (int j0 = 0; j0 <= i0 && j0 < d.time; j0 += BLOCK) {
        products<T, V>(memory, q, i0, k, j0, [&](int i, int j, float s) {
            p[i * PITCH + j] = j0 + j <= i0 + i && j0 + j < d.time ? s * d.scale : -INFINITY;
        });
        __syncthreads();
        float most = top;
        for (int j = odd; j < BLOCK; j += 2) most = fmaxf(most, p[row * PITCH + j]);
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
        const float factor = expf(top - most);
        float part = 0.f;
        for (int j = odd; j < BLOCK; j += 2) {
            const float weight = expf(p[row * PITCH + j] - most);
            p[row * PITCH + j] = weight;
            part += weight;
        }
        part += __shfl_xor_sync(0xffffffffu, part, 1);
        top = most, sum = fmaf(sum, factor, part);
        if (!odd) factors[row] = factor;
        __syncthreads();
        out.scale_rows([&](int i) { return factors[i]; });
        out.run([&](int i, int j) { return four<T>(p + i * PITCH + j); },
                [&](int e, int j) { return v.at(j0 + j, column + e); }, 0, BLOCK);
    }
    if (!odd) {
        factors[row] = 1.f / sum;
        if (column == 0 && i0 + row < d.time) {
            float* level = levels + 2 * ((int64_t)blockIdx.y * d.time + i0 + row);
            level[0] = top, level[1] = 1.f / sum;
        }
    }
    __syncthreads();
    give(out, Head<T, V>(y, d, 1, 0), i0, column, [&](int i) { return factors[i]; });
}

// delta (B, H, T) = dy . y of each head; a warp per head and position.
template <class T>
__device__ void deltas(float* delta, const T* dy, const T* y, int64_t rows, const Sizes& d) {
    const int lane = threadIdx.x % 32;
    const int64_t at = (int64_t)blockIdx.x * 4 + threadIdx.x / 32;  // (B, T, H)
    if (at >= rows) return;
    float sum = 0.f;
    for (int e = lane; e < d.each; e += 32) sum = fmaf(load(dy[at * d.each + e]), load(y[at * d.each + e]), sum);
    sum = warp_reduce(sum, Sum());
    const int64_t h = at % d.heads, t = at / d.heads % d.time, b = at / d.heads / d.time;
    if (lane == 0) delta[(b * d.heads + h) * d.time + t] = sum;
}

// The probabilities of queries from i0 and keys from j0 on into p (query, key).
template <class T, int V>
__device__ __forceinline__ void probabilities(void* memory, float* p, const Head<const T, V>& q, int i0,
                                              const Head<const T, V>& k, int j0, const float* levels, const Sizes& d) {
    products<T, V>(memory, q, i0, k, j0, [&](int i, int j, float s) {
        const bool seen = j0 + j <= i0 + i && i0 + i < d.time;
        p[i * PITCH + j] = seen ? expf(s * d.scale - levels[2 * (i0 + i)]) * levels[2 * (i0 + i) + 1] : 0.f;
    });
    __syncthreads();
}

// Turns p into the gradient of the scores, p (dp - delta), in place.
template <class T, int V>
__device__ __forceinline__ void slopes(void* memory, float* p, const Head<const T, V>& dy, int i0, const Head<const T, V>& v,
                                       int j0, const float* delta, const Sizes& d) {
    products<T, V>(memory, dy, i0, v, j0, [&](int i, int j, float dp) {
        p[i * PITCH + j] *= i0 + i < d.time ? dp - delta[i0 + i] : 0.f;
    });
    __syncthreads();
}

// dq of 64 queries, into (B, T, 3 D).
template <int V, class T>
__device__ void queries(Room<T>& room, T* dqkv, const T* qkv, const T* dy, const float* levels, const float* delta, const Sizes& d) {
    unsigned char* memory = room.memory;
    float* p = room.p;
    const Head<const T, V> q(qkv, d, 3, 0), k(qkv, d, 3, 1), v(qkv, d, 3, 2), g(dy, d, 1, 0);
    const int i0 = blockIdx.x * BLOCK, column = blockIdx.z * BLOCK;
    levels += (int64_t)blockIdx.y * d.time * 2, delta += (int64_t)blockIdx.y * d.time;
    Mixed<T, V> dq(memory);
    for (int j0 = 0; j0 <= i0; j0 += BLOCK) {
        probabilities<T, V>(memory, p, q, i0, k, j0, levels, d);
        slopes<T, V>(memory, p, g, i0, v, j0, delta, d);
        dq.run([&](int i, int j) { return four<T>(p + i * PITCH + j); },
               [&](int e, int j) { return k.at(j0 + j, column + e); }, 0, BLOCK);
    }
    give(dq, Head<T, V>(dqkv, d, 3, 0), i0, column, [&](int) { return d.scale; });
}

// dk and dv of 64 keys, into (B, T, 3 D).
template <int V, class T>
__device__ void keys(Room<T>& room, T* dqkv, const T* qkv, const T* dy, const float* levels, const float* delta, const Sizes& d) {
    unsigned char* memory = room.memory;
    float* p = room.p;
    const Head<const T, V> q(qkv, d, 3, 0), k(qkv, d, 3, 1), v(qkv, d, 3, 2), g(dy, d, 1, 0);
    const int j0 = blockIdx.x * BLOCK, column = blockIdx.z * BLOCK;
    levels += (int64_t)blockIdx.y * d.time * 2, delta += (int64_t)blockIdx.y * d.time;
    Turned<T, V> dk(memory), dv(memory);
    const auto turned = [&](int j, int i) { return four<T>(p + i * PITCH + j); };
    for (int i0 = j0; i0 < d.time; i0 += BLOCK) {
        probabilities<T, V>(memory, p, q, i0, k, j0, levels, d);
        dv.run(turned, [&](int e, int i) { return g.at(i0 + i, column + e); }, 0, BLOCK);
        slopes<T, V>(memory, p, g, i0, v, j0, delta, d);
        dk.run(turned, [&](int e, int i) { return q.at(i0 + i, column + e); }, 0, BLOCK);
    }
    give(dk, Head<T, V>(dqkv, d, 3, 1), j0, column, [&](int) { return d.scale; });
    give(dv, Head<T, V>(dqkv, d, 3, 2), j0, column, [&](int) { return 1.f; });
}

// Vectors of four where E allows it.
#define WITH_VECTORS(f, T, ...)                          \
    __shared__ Room<T> room;                             \
    if (d.each % 4 == 0) return f<4>(room, __VA_ARGS__); \
    return f<1>(room, __VA_ARGS__)

}  // namespace

extern "C" __global__ void __launch_bounds__(128) attention_forward_f32(float* y, float* levels, const float* qkv,
        Sizes d) {
    WITH_VECTORS(forward, float, y, levels, qkv, d);
}
extern "C" __global__ void __launch_bounds__(128) attention_forward_bf16(bf16* y, float* levels, const bf16* qkv,
        Sizes d) {
    WITH_VECTORS(forward, bf16, y, levels, qkv, d);
}
extern "C" __global__ void __launch_bounds__(128) attention_forward_f16(f16* y, float* levels, const f16* qkv,
        Sizes d) {
    WITH_VECTORS(forward, f16, y, levels, qkv, d);
}

extern "C" __global__ void __launch_bounds__(128) attention_deltas_f32(float* delta, const float* dy, const float* y,
        int64_t rows, Sizes d) {
    deltas(delta, dy, y, rows, d);
}
extern "C" __global__ void __launch_bounds__(128) attention_deltas_bf16(float* delta, const bf16* dy, const bf16* y,
        int64_t rows, Sizes d) {
    deltas(delta, dy, y, rows, d);
}
extern "C" __global__ void __launch_bounds__(128) attention_deltas_f16(float* delta, const f16* dy, const f16* y,
        int64_t rows, Sizes d) {
    deltas(delta, dy, y, rows, d);
}

extern "C" __global__ void __launch_bounds__(128) attention_queries_f32(float* dqkv, const float* qkv,
        const float* dy, const float* levels, const float* delta, Sizes d) {
    WITH_VECTORS(queries, float, dqkv, qkv, dy, levels, delta, d);
}
extern "C" __global__ void __launch_bounds__(128) attention_queries_bf16(bf16* dqkv, const bf16* qkv, const bf16* dy,
        const float* levels, const float* delta, Sizes d) {
    WITH_VECTORS(queries, bf16, dqkv, qkv, dy, levels, delta, d);
}
extern "C" __global__ void __launch_bounds__(128) attention_queries_f16(f16* dqkv, const f16* qkv, const f16* dy,
        const float* levels, const float* delta, Sizes d) {
    WITH_VECTORS(queries, f16, dqkv, qkv, dy, levels, delta, d);
}

extern "C" __global__ void __launch_bounds__(128) attention_keys_f32(float* dqkv, const float* qkv, const float* dy,
        const float* levels, const float* delta, Sizes d) {
    WITH_VECTORS(keys, float, dqkv, qkv, dy, levels, delta, d);
}
extern "C" __global__ void __launch_bounds__(128) attention_keys_bf16(bf16* dqkv, const bf16* qkv, const bf16* dy,
        const float* levels, const float* delta, Sizes d) {
    WITH_VECTORS(keys, bf16, dqkv, qkv, dy, levels, delta, d);
}
extern "C" __global__ void __launch_bounds__(128) attention_keys_f16(f16* dqkv, const f16* qkv, const f16* dy,
        const float* levels, const float* delta, Sizes d) {
    WITH_VECTORS(keys, f16, dqkv, qkv, dy, levels, delta, d);
}
