// Invertible 1x1 convolution: out = M (x + before) - after at every row of x (R, C), and the gradient of M.
// The forward pass is M = W, before = loc; the inverse M = W^-1, after = loc; the input gradient M = W^T. An actnorm in
// front is part of W (src/ops/invertible_conv.rs), so a whole linear step of a flow is one pass over the data.
//
// Few channels (C <= 64; `invertible_conv_mix_*`, `invertible_conv_backward_*`): W stays in shared memory, a block walks
// over tiles of rows. Rows come and go as one contiguous piece, in 16-byte packs whatever C is; a thread makes 4 rows
// x 4 outputs, 64 FMA for 8 shared 16-byte reads. Per element, at element size e: 2 e bytes, 2 C flops forward;
// 3 e bytes, 4 C flops backward (input and matrix gradient in one pass over g and x).
// Bound: memory up to C of about 64 in f32 (the ridge of an H100 is 20 f32 flops per byte) and 32 in bf16.
//
// Many channels (`invertible_conv_tiled_*`, `invertible_conv_matrix_grad_*`): tiles of a matrix product, tensor cores
// for bf16 and f16 (tile.cuh). Bound: tensor cores above C of about 300 in bf16, memory below.
//
// Sums over rows are made per block, in a number of blocks that depends on the sizes alone, and added in order by
// `invertible_conv_finish_*`. Launched by src/ops/invertible_conv.rs.
#include "tile.cuh"

namespace {

constexpr int THREADS = 256, LARGEST = 64;

// Shared rows: an odd number of 16-byte packs, so that 8 rows lie in different banks.
__host__ __device__ constexpr int pitch(int c) { return ((c + 3) / 4 | 1) * 4; }

// How a block of THREADS threads covers a tile: 4 x 4 outputs each.
struct Cover {
    int c, groups, blocks, rows;  // groups of 4 channels; groups of 4 rows; rows of a tile
    __device__ explicit Cover(int c)
        : c(c), groups((c + 3) / 4), blocks(THREADS / groups & ~1), rows(4 * blocks) {}
};

// Rows [row0, row0 + rows) of x, as many as there are, plus `before`, into shared memory; zeros behind them.
template <class T>
__device__ void stage(float* s, const T* x, const float* before, const Cover& cover, int64_t row0, int64_t n) {
    const int c = cover.c, p = pitch(c), size = cover.rows * c;
    for (int e = threadIdx.x * Pack<T>::WIDTH; e < size; e += THREADS * Pack<T>::WIDTH) {
        const Pack<T> pack = load_pack(x + row0 * c, e, (n - row0) * c);
        int row = e / c, col = e - row * c;
#pragma unroll
        for (int i = 0; i < Pack<T>::WIDTH; ++i) {
            if (row < cover.rows) s[row * p + col] = row0 + row < n ? load(pack.v[i]) + before[col] : 0.f;
            if (++col == c) col = 0, ++row;
        }
    }
}

// The other way, without the columns that pad a row.
template <class T>
__device__ void unstage(T* out, const float* s, const Cover& cover, int64_t row0, int64_t n) {
    const int c = cover.c, p = pitch(c), size = cover.rows * c;
    for (int e = threadIdx.x * Pack<T>::WIDTH; e < size; e += THREADS * Pack<T>::WIDTH) {
        Pack<T> pack;
        int row = e / c, col = e - row * c;
#pragma unroll
        for (int i = 0; i < Pack<T>::WIDTH; ++i) {
            pack.v[i] = store<T>(row < cover.rows ? s[row * p + col] : 0.f);
            if (++col == c) col = 0, ++row;
        }
        const int64_t left = (n - row0) * c;
        store_pack(out + row0 * c, e, left < size ? left : size, pack);
    }
}

// The matrix as (input, output) with zeros in the padding: m[i][o] = w[o, i], or w[i, o] when transposed.
template <class T>
__device__ void stage_matrix(float* m, const T* w, int c, bool transposed) {
    const int p = pitch(c);
    for (int e = threadIdx.x; e < p * p; e += THREADS) {
        const int i = e / p, o = e - i * p;
        m[e] = i < c && o < c ? load(transposed ? w[i * c + o] : w[o * c + i]) : 0.f;
    }
}

__device__ __forceinline__ void zero_padding(float* s, const Cover& cover) {
    const int p = pitch(cover.c), extra = p - cover.c;
    for (int e = threadIdx.x; e < cover.rows * extra; e += THREADS) s[e / extra * p + cover.c + e % extra] = 0.f;
}

// sums[r][j] = Σ_i s[row r][i] m[i][4 group + j], rows block, block + blocks, ...
__device__ __forceinline__ void multiply(float (&sums)[4][4], const float* s, const float* m, const Cover& cover) {
    const int block = threadIdx.x % cover.blocks, o = threadIdx.x / cover.blocks * 4, p = pitch(cover.c);
#pragma unroll
    for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[r][j] = 0.f;
    for (int i = 0; i < cover.c; i += 4) {
        Vec<float, 4> x[4];
#pragma unroll
        for (int r = 0; r < 4; ++r) x[r] = load_vec<4>(s + (block + r * cover.blocks) * p + i);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const Vec<float, 4> w = load_vec<4>(m + (i + k) * p + o);
#pragma unroll
            for (int r = 0; r < 4; ++r)
#pragma unroll
                for (int j = 0; j < 4; ++j) sums[r][j] = fmaf(x[r].v[k], w.v[j], sums[r][j]);
        }
    }
}

__device__ __forceinline__ void put(float* s, const float (&sums)[4][4], const float* after, const Cover& cover) {
    const int block = threadIdx.x % cover.blocks, o = threadIdx.x / cover.blocks * 4, p = pitch(cover.c);
#pragma unroll
    for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int j = 0; j < 4; ++j)
            if (o + j < cover.c) s[(block + r * cover.blocks) * p + o + j] = sums[r][j] - after[o + j];
}

__device__ __forceinline__ bool has_work(const Cover& cover) { return (int)threadIdx.x < cover.blocks * cover.groups; }

template <class T>
__device__ void stage_vector(float* to, const T* from, int c) {
    for (int i = threadIdx.x; i < c; i += THREADS) to[i] = from ? load(from[i]) : 0.f;
}

// Dynamic shared memory: pitch^2 for the matrix, 2 * LARGEST for the vectors, rows * pitch for a tile.
template <class T>
__device__ void mix(T* out, const T* x, const T* w, const T* before, const T* after, int64_t n, int c, int transposed) {
    DYN_SHARED(float, m);
    const Cover cover(c);
    float *shift = m + pitch(c) * pitch(c), *back = shift + LARGEST, *tile = back + LARGEST;
    stage_matrix(m, w, c, transposed);
    stage_vector(shift, before, c);
    stage_vector(back, after, c);
    zero_padding(tile, cover);
    __syncthreads();
    for (int64_t row0 = (int64_t)blockIdx.x * cover.rows; row0 < n; row0 += (int64_t)gridDim.x * cover.rows) {
        stage(tile, x, shift, cover, row0, n);
        __syncthreads();
        float sums[4][4];
        if (has_work(cover)) multiply(sums, tile, m, cover);
        __syncthreads();
        if (has_work(cover)) put(tile, sums, back, cover);
        __syncthreads();
        unstage(out, tile, cover, row0, n);
        __syncthreads();
    }
}

// dx = W^T g, and per block Σ g (x + loc)^T (C, C) and Σ g (C) into partial (blocks, C^2 + C).
// Dynamic shared memory: as `mix`, with two tiles.
template <class T>
__device__ void backward(T* dx, float* partial, const T* g, const T* x, const T* w, const T* loc, int64_t n, int c) {
    DYN_SHARED(float, m);
    const Cover cover(c);
    const int p = pitch(c);
    float *shift = m + p * p, *zeros = shift + LARGEST, *gs = zeros + LARGEST, *xs = gs + cover.rows * p;
    stage_matrix(m, w, c, true);
    stage_vector(shift, loc, c);
    stage_vector<T>(zeros, nullptr, c);
    zero_padding(gs, cover);
    zero_padding(xs, cover);
    // A thread makes 4 x 4 entries of the matrix gradient, from the rows of its slice.
    const int pairs = cover.groups * cover.groups, slices = THREADS / pairs;
    const int pair = threadIdx.x % pairs, slice = threadIdx.x / pairs;
    const int o = pair / cover.groups * 4, i = pair % cover.groups * 4;
    float dw[4][4] = {}, sum_g[4] = {};
    __syncthreads();
    for (int64_t row0 = (int64_t)blockIdx.x * cover.rows; row0 < n; row0 += (int64_t)gridDim.x * cover.rows) {
        stage(gs, g, zeros, cover, row0, n);
        stage(xs, x, shift, cover, row0, n);
        __syncthreads();
        if (slice < slices) {
            for (int r = slice; r < cover.rows; r += slices) {
                const Vec<float, 4> a = load_vec<4>(gs + r * p + o), b = load_vec<4>(xs + r * p + i);
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    sum_g[k] += a.v[k];
#pragma unroll
                    for (int j = 0; j < 4; ++j) dw[k][j] = fmaf(a.v[k], b.v[j], dw[k][j]);
                }
            }
        }
        float sums[4][4];
        if (has_work(cover)) multiply(sums, gs, m, cover);
        __syncthreads();
        if (has_work(cover)) put(gs, sums, zeros, cover);
        __syncthreads();
        unstage(dx, gs, cover, row0, n);
        __syncthreads();
    }
    // The slices of the block, in order; they need THREADS * 20 floats, which two tiles have.
    float* all = gs;
#pragma unroll
    for (int k = 0; k < 20; ++k) all[k * THREADS + threadIdx.x] = k < 16 ? dw[k / 4][k % 4] : sum_g[k - 16];
    __syncthreads();
    float* to = partial + (size_t)blockIdx.x * (c * c + c);
    for (int e = threadIdx.x; e < c * c + c; e += THREADS) {
        const bool matrix = e < c * c;
        const int row = matrix ? e / c : e - c * c, col = matrix ? e - row * c : 0;
        const int owner = row / 4 * cover.groups + col / 4, k = matrix ? row % 4 * 4 + col % 4 : 16 + row % 4;
        float sum = 0.f;
        for (int s = 0; s < slices; ++s) sum += all[k * THREADS + s * pairs + owner];
        to[e] = sum;
    }
}

// Blocks of 256 threads: 32 entries x 8 slices of the partial sums. The last block makes d loc = W^T Σ g, if wanted.
template <class T>
__device__ void finish(T* dw, T* dloc, const float* partial, const T* w, int blocks, int c, int with_loc) {
    __shared__ float part[8][32];
    __shared__ float sum_g[LARGEST];
    const int stride = with_loc ? c * c + c : c * c, lane = threadIdx.x % 32, slice = threadIdx.x / 32;
    auto total = [&](int e, bool valid) {
        float sum = 0.f;
        for (int b = slice; valid && b < blocks; b += 8) sum += partial[(size_t)b * stride + e];
        part[slice][lane] = sum;
        __syncthreads();
        sum = 0.f;
#pragma unroll
        for (int s = 0; s < 8; ++s) sum += part[s][lane];
        __syncthreads();
        return sum;
    };
    if (!with_loc || blockIdx.x + 1 < gridDim.x) {
        const int e = blockIdx.x * 32 + lane;
        const float sum = total(e, e < c * c);
        if (slice == 0 && e < c * c) dw[e] = store<T>(sum);
        return;
    }
    for (int o0 = 0; o0 < c; o0 += 32) {
        const float sum = total(c * c + o0 + lane, o0 + lane < c);
        if (slice == 0 && o0 + lane < c) sum_g[o0 + lane] = sum;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < c; i += blockDim.x) {
        float sum = 0.f;
        for (int o = 0; o < c; ++o) sum = fmaf(load(w[o * c + i]), sum_g[o], sum);
        dloc[i] = store<T>(sum);
    }
}

// One tile of out = M (x + before) - after: rows by 64 outputs, V channels at a time.
template <class T, int V, Neighbours ORDER>
__device__ void tiled(T* out, const T* x, const T* w, const T* before, const T* after, int64_t n, int c) {
    using Product = Tile<T, 64, ALONG_K, ORDER, V, V>;
    DYN_SHARED(unsigned char, memory);  // Product::BYTES, see the launch
    Product product(memory);
    const int64_t row0 = (int64_t)blockIdx.x * Product::M;
    const int o0 = blockIdx.y * 64;
    auto rows = [&](int r, int i) {
        if (row0 + r >= n || i >= c) return zero_vec<V, T>();
        Vec<T, V> v = load_vec<V>(x + (row0 + r) * c + i);
        if (before) {
#pragma unroll
            for (int k = 0; k < V; ++k) v.v[k] = store<T>(load(v.v[k]) + load(before[i + k]));
        }
        return v;
    };
    // M's column o is row o of w, or its column o (then neighbours lie along o).
    auto matrix = [&](int o, int i) {
        if (o0 + o >= c || i >= c) return zero_vec<V, T>();
        return load_vec<V>(ORDER == ALONG_K ? w + (size_t)(o0 + o) * c + i : w + (size_t)i * c + o0 + o);
    };
    product.run(rows, matrix, 0, c);
    product.each_pair([&](int r, int o, float v0, float v1) {
        if (row0 + r >= n) return;
        T* to = out + (row0 + r) * c + o0 + o;
        if (o0 + o < c) to[0] = store<T>(after ? v0 - load(after[o0 + o]) : v0);
        if (o0 + o + 1 < c) to[1] = store<T>(after ? v1 - load(after[o0 + o + 1]) : v1);
    });
}

// Tile (o, i) of Σ g (x + loc)^T over the rows of split blockIdx.z, into partial (splits, C, C).
template <class T, int V>
__device__ void matrix_grad(float* partial, const T* g, const T* x, const T* loc, int64_t n, int c) {
    using Product = Tile<T, 64, ALONG_ROWS, ALONG_ROWS, V, V>;
    DYN_SHARED(unsigned char, memory);  // Product::BYTES, see the launch
    Product product(memory);
    const int o0 = blockIdx.x * Product::M, i0 = blockIdx.y * 64;
    const int64_t chunk = (n + gridDim.z - 1) / gridDim.z, first = blockIdx.z * chunk;
    const int rows = (int)(first < n ? (n - first < chunk ? n - first : chunk) : 0);
    auto outputs = [&](int o, int r) {
        return o0 + o < c && r < rows ? load_vec<V>(g + (first + r) * c + o0 + o) : zero_vec<V, T>();
    };
    auto inputs = [&](int i, int r) {
        if (i0 + i >= c || r >= rows) return zero_vec<V, T>();
        Vec<T, V> v = load_vec<V>(x + (first + r) * c + i0 + i);
        if (loc) {
#pragma unroll
            for (int k = 0; k < V; ++k) v.v[k] = store<T>(load(v.v[k]) + load(loc[i0 + i + k]));
        }
        return v;
    };
    product.run(outputs, inputs, 0, rows);
    float* to = partial + (size_t)blockIdx.z * c * c;
    product.each_pair([&](int o, int i, float v0, float v1) {
        if (o0 + o >= c) return;
        if (i0 + i < c) to[(size_t)(o0 + o) * c + i0 + i] = v0;
        if (i0 + i + 1 < c) to[(size_t)(o0 + o) * c + i0 + i + 1] = v1;
    });
}

}  // namespace

extern "C" __global__ void __launch_bounds__(256) invertible_conv_mix_f32(float* out, const float* x,
        const float* w, const float* before, const float* after, int64_t n, int c, int transposed) {
    mix(out, x, w, before, after, n, c, transposed);
}
extern "C" __global__ void __launch_bounds__(256) invertible_conv_mix_bf16(bf16* out, const bf16* x,
        const bf16* w, const bf16* before, const bf16* after, int64_t n, int c, int transposed) {
    mix(out, x, w, before, after, n, c, transposed);
}
extern "C" __global__ void __launch_bounds__(256) invertible_conv_mix_f16(f16* out, const f16* x,
        const f16* w, const f16* before, const f16* after, int64_t n, int c, int transposed) {
    mix(out, x, w, before, after, n, c, transposed);
}

extern "C" __global__ void __launch_bounds__(256) invertible_conv_backward_f32(float* dx, float* partial,
        const float* g, const float* x, const float* w, const float* loc, int64_t n, int c) {
    backward(dx, partial, g, x, w, loc, n, c);
}
extern "C" __global__ void __launch_bounds__(256) invertible_conv_backward_bf16(bf16* dx, float* partial,
        const bf16* g, const bf16* x, const bf16* w, const bf16* loc, int64_t n, int c) {
    backward(dx, partial, g, x, w, loc, n, c);
}
extern "C" __global__ void __launch_bounds__(256) invertible_conv_backward_f16(f16* dx, float* partial,
        const f16* g, const f16* x, const f16* w, const f16* loc, int64_t n, int c) {
    backward(dx, partial, g, x, w, loc, n, c);
}

extern "C" __global__ void __launch_bounds__(256) invertible_conv_finish_f32(float* dw, float* dloc,
        const float* partial, const float* w, int blocks, int c, int with_loc) {
    finish(dw, dloc, partial, w, blocks, c, with_loc);
}
extern "C" __global__ void __launch_bounds__(256) invertible_conv_finish_bf16(bf16* dw, bf16* dloc,
        const float* partial, const bf16* w, int blocks, int c, int with_loc) {
    finish(dw, dloc, partial, w, blocks, c, with_loc);
}
extern "C" __global__ void __launch_bounds__(256) invertible_conv_finish_f16(f16* dw, f16* dloc,
        const float* partial, const f16* w, int blocks, int c, int with_loc) {
    finish(dw, dloc, partial, w, blocks, c, with_loc);
}

// The widest V that divides the channels.
#define WITH_V(f, T, ...)                                                \
    if (c % Pack<T>::WIDTH == 0) f<T, Pack<T>::WIDTH>(__VA_ARGS__);      \
    else f<T, 1>(__VA_ARGS__);

template <class T, int V>
__device__ void either(T* out, const T* x, const T* w, const T* before, const T* after, int64_t n, int c, int transposed) {
    if (transposed) tiled<T, V, ALONG_ROWS>(out, x, w, before, after, n, c);
    else tiled<T, V, ALONG_K>(out, x, w, before, after, n, c);
}

extern "C" __global__ void __launch_bounds__(128) invertible_conv_tiled_f32(float* out, const float* x,
        const float* w, const float* before, const float* after, int64_t n, int c, int transposed) {
    WITH_V(either, float, out, x, w, before, after, n, c, transposed)
}
extern "C" __global__ void __launch_bounds__(128) invertible_conv_tiled_bf16(bf16* out, const bf16* x,
        const bf16* w, const bf16* before, const bf16* after, int64_t n, int c, int transposed) {
    WITH_V(either, bf16, out, x, w, before, after, n, c, transposed)
}
extern "C" __global__ void __launch_bounds__(128) invertible_conv_tiled_f16(f16* out, const f16* x,
        const f16* w, const f16* before, const f16* after, int64_t n, int c, int transposed) {
    WITH_V(either, f16, out, x, w, before, after, n, c, transposed)
}

extern "C" __global__ void __launch_bounds__(128) invertible_conv_matrix_grad_f32(float* partial,
        const float* g, const float* x, const float* loc, int64_t n, int c) {
    WITH_V(matrix_grad, float, partial, g, x, loc, n, c)
}
extern "C" __global__ void __launch_bounds__(128) invertible_conv_matrix_grad_bf16(float* partial,
        const bf16* g, const bf16* x, const bf16* loc, int64_t n, int c) {
    WITH_V(matrix_grad, bf16, partial, g, x, loc, n, c)
}
extern "C" __global__ void __launch_bounds__(128) invertible_conv_matrix_grad_f16(float* partial,
        const f16* g, const f16* x, const f16* loc, int64_t n, int c) {
    WITH_V(matrix_grad, f16, partial, g, x, loc, n, c)
}
