// One tile of a product of bf16 or f16 whose operands come by 16 bytes: C (M x N) = sum over k of A (M, k) B (k, N), f32
// sums on the tensor cores, one warp to WARP_M x WARP_N of them.
//
// Slices of 32 along k pass through a ring of STAGES in shared memory: while one is multiplied the next ones are on their
// way (cp.async), and a warp reads the fragments of its next 16 along k before it multiplies the present ones. One
// barrier to a slice. Sums run over k in order, in steps of 16, whatever the tile.
//
// A source says where an operand lies:
//   ORDER                     what its 8 neighbouring elements are neighbours along
//   data                      any address in it
//   Place place(row)          what can be known of a row (of A; a column of B) ahead, for ALONG_ROWS of 8 rows
//   const T* at(place, k)     8 elements from there, or null for zeros
#pragma once
#include "cp_async.cuh"
#include "ldmatrix.cuh"
#include "mma.cuh"
#include "vec.cuh"

// A matrix in memory: rows of `pitch` elements along k, or for ALONG_ROWS a row of `pitch` to every k. The length of what
// lies side by side is a multiple of 8.
template <class T, Neighbours WHICH>
struct Matrix {
    static constexpr Neighbours ORDER = WHICH;
    using Place = const T*;
    const T* data;
    int64_t rows, pitch;

    __device__ __forceinline__ Place place(int64_t row) const {
        return row < rows ? data + (ORDER == ALONG_K ? row * pitch : row) : nullptr;
    }
    __device__ __forceinline__ const T* at(Place from, int k) const {
        return from ? from + (ORDER == ALONG_K ? k : k * pitch) : nullptr;
    }
};

// Element 0 of a chunk of 16 bytes in lines of CHUNKS. A chunk moves within its line such that the same one of eight
// lines, which ldmatrix reads at once, lies in different banks.
template <int CHUNKS>
__device__ __forceinline__ unsigned moved(unsigned line, unsigned chunk) {
    constexpr unsigned SHIFT = CHUNKS < 8 ? 1 : 0;
    static_assert(CHUNKS >= 4, "a line of 64 bytes at least");
    return (line * CHUNKS + (chunk ^ (line >> SHIFT & (CHUNKS < 8 ? 3 : 7)))) * 8;
}

// Where the tile of block `number` starts, counted in tiles. Bands of 8 tiles down are filled column by column, so that
// blocks that run together read few rows of A and few columns of B, out of L2.
__device__ __forceinline__ void in_bands(unsigned number, unsigned down, unsigned across, int64_t& row, int64_t& column) {
    constexpr unsigned BAND = 8;
    const unsigned first = number / (BAND * across) * BAND, inside = number % (BAND * across);
    const unsigned height = down - first < BAND ? down - first : BAND;
    row = first + inside % height;
    column = inside / height;
}

template <class T, int M, int N, int WARP_M, int WARP_N>
struct Wide {
    static constexpr int K = 32, STAGES = 4;
    static constexpr int WARPS_ACROSS = N / WARP_N, THREADS = M / WARP_M * WARPS_ACROSS * 32;
    static constexpr int SIZE_A = M * K, STAGE = (M + N) * K, BYTES = STAGES * STAGE * (int)sizeof(T);
    static constexpr int DOWN = WARP_M / 16, ACROSS = WARP_N / 8;
    // Sums on their way out: the rows of a warp, padded so that the four of an access lie in different banks.
    static constexpr int PITCH = N + 8;
    static_assert(WARP_M * PITCH * 4 <= BYTES, "the sums of a row of warps pass through the ring");

    T* ring;
    int64_t m0, n0;
    float acc[DOWN][ACROSS][4];

    // The tile of this block in (m, n).
    __device__ __forceinline__ Wide(T* shared, int64_t m, int64_t n) : ring(shared) {
        in_bands(blockIdx.x, (unsigned)((m + M - 1) / M), (unsigned)((n + N - 1) / N), m0, n0);
        m0 *= M;
        n0 *= N;
#pragma unroll
        for (int i = 0; i < DOWN; ++i)
#pragma unroll
            for (int j = 0; j < ACROSS; ++j)
#pragma unroll
                for (int q = 0; q < 4; ++q) acc[i][j][q] = 0.f;
    }

    // This thread's chunks of ROWS rows of an operand.
    template <class Source, int ROWS>
    struct Share {
        static constexpr bool ALONG = Source::ORDER == ALONG_K;
        static constexpr int CHUNKS = (ALONG ? K : ROWS) / 8, COUNT = ROWS * K / 8 / THREADS;
        static_assert(THREADS % CHUNKS == 0 && COUNT * THREADS * 8 == ROWS * K, "whole lines to a round of all threads");
        typename Source::Place places[ALONG ? COUNT : 1];

        __device__ __forceinline__ Share(const Source& source, int64_t first) {
            const int t = (int)threadIdx.x;
            if (ALONG) {
#pragma unroll
                for (int i = 0; i < COUNT; ++i) places[i] = source.place(first + (t + i * THREADS) / CHUNKS);
            } else {
                places[0] = source.place(first + t % CHUNKS * 8);
            }
        }

        __device__ __forceinline__ void ask(const Source& source, T* stage, int k0, int k_end) const {
#pragma unroll
            for (int i = 0; i < COUNT; ++i) {
                const int vec = (int)threadIdx.x + i * THREADS, line = vec / CHUNKS, chunk = vec % CHUNKS;
                const int k = k0 + (ALONG ? chunk * 8 : line);
                const T* from = k < k_end ? source.at(places[ALONG ? i : 0], k) : nullptr;
                copy_async(stage + moved<CHUNKS>(line, chunk), from ? from : source.data, from != nullptr);
            }
        }
    };

    // The matrix of this lane's row begins at (row, k) of the operand's part in `stage`.
    template <Neighbours ORDER, int ROWS>
    static __device__ __forceinline__ void fragment(uint32_t (&f)[4], const T* stage, unsigned row, unsigned k) {
        const unsigned line = threadIdx.x % 8;
        if constexpr (ORDER == ALONG_K) ldmatrix(f, stage + moved<K / 8>(row + line, k / 8));
        else ldmatrix_transposed(f, stage + moved<ROWS / 8>(k + line, row / 8));
    }

    struct Fragments {
        uint32_t a[DOWN][4], b[ACROSS / 2][4];

        template <Neighbours ORDER_A, Neighbours ORDER_B>
        __device__ __forceinline__ void read(const T* stage, unsigned k) {
            const unsigned warp = threadIdx.x / 32, part = threadIdx.x % 32 / 8;
            const unsigned m = warp / WARPS_ACROSS * WARP_M, n = warp % WARPS_ACROSS * WARP_N;
#pragma unroll
            for (unsigned i = 0; i < DOWN; ++i)
                fragment<ORDER_A, M>(a[i], stage, m + i * 16 + part % 2 * 8, k + part / 2 * 8);
#pragma unroll
            for (unsigned j = 0; j < ACROSS / 2; ++j)
                fragment<ORDER_B, N>(b[j], stage + SIZE_A, n + j * 16 + part / 2 * 8, k + part % 2 * 8);
        }
    };

    __device__ __forceinline__ void multiply(const Fragments& f) {
#pragma unroll
        for (int i = 0; i < DOWN; ++i)
#pragma unroll
            for (int j = 0; j < ACROSS; ++j) {
                const uint32_t pair[2] = {f.b[j / 2][j % 2 * 2], f.b[j / 2][j % 2 * 2 + 1]};
                mma(acc[i][j], f.a[i], pair, T());
            }
    }

    // Adds the products of k_begin..k_end; where a source lies along k, both are multiples of 8.
    template <class A, class B>
    __device__ __forceinline__ void run(const A& a, const B& b, int k_begin, int k_end) {
        constexpr int AHEAD = STAGES - 1, STEPS = K / 16;
        if (k_begin >= k_end) return;
        const int slices = (k_end - k_begin + K - 1) / K;
        const Share<A, M> left(a, m0);
        const Share<B, N> right(b, n0);
        // A group to a slice, an empty one behind the last, so that counting them is the same everywhere.
        const auto ask = [&](int slice) {
            if (slice < slices) {
                T* stage = ring + slice % STAGES * STAGE;
                left.ask(a, stage, k_begin + slice * K, k_end);
                right.ask(b, stage + SIZE_A, k_begin + slice * K, k_end);
            }
            copies_commit();
        };
#pragma unroll 1
        for (int slice = 0; slice < AHEAD; ++slice) ask(slice);
        copies_wait<AHEAD - 1>();
        __syncthreads();
        Fragments f[2];
        f[0].template read<A::ORDER, B::ORDER>(ring, 0);
#pragma unroll 1
        for (int slice = 0; slice < slices; ++slice) {
            const T* stage = ring + slice % STAGES * STAGE;
            static_assert(STEPS == 2, "two sets of fragments in turn");
            f[1].template read<A::ORDER, B::ORDER>(stage, 16);
            // Into the stage of the slice before, which all threads have read before the last barrier.
            ask(slice + AHEAD);
            multiply(f[0]);
            copies_wait<AHEAD - 1>();
            __syncthreads();
            if (slice + 1 < slices) f[0].template read<A::ORDER, B::ORDER>(ring + (slice + 1) % STAGES * STAGE, 0);
            multiply(f[1]);
        }
    }

    // f(row, column, values) for 8 neighbouring sums of C inside of (m, n), n a multiple of 8; neighbouring threads take
    // neighbouring columns. The last use of the tile: the sums pass through the ring, which nobody reads behind the last
    // barrier of `run`, one row of warps after the other.
    template <class F>
    __device__ __forceinline__ void put(int64_t m, int64_t n, const F& f) {
        float* sums = reinterpret_cast<float*>(ring);
        const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
#pragma unroll 1
        for (int part = 0; part < M / WARP_M; ++part) {
            if (part > 0) __syncthreads();
            if (warp / WARPS_ACROSS == part) {
                float* mine = sums + lane / 4 * PITCH + warp % WARPS_ACROSS * WARP_N + lane % 4 * 2;
#pragma unroll
                for (int i = 0; i < DOWN; ++i)
#pragma unroll
                    for (int j = 0; j < ACROSS; ++j)
#pragma unroll
                        for (int half = 0; half < 2; ++half)
                            store_vec<2>(mine + (i * 16 + half * 8) * PITCH + j * 8,
                                         Vec<float, 2>{{acc[i][j][half * 2], acc[i][j][half * 2 + 1]}});
            }
            __syncthreads();
#pragma unroll 1
            for (int vec = (int)threadIdx.x; vec < WARP_M * N / 8; vec += THREADS) {
                const int line = vec / (N / 8), at = vec % (N / 8) * 8;
                const int64_t row = m0 + part * WARP_M + line, column = n0 + at;
                if (row < m && column < n) {
                    const Vec<float, 4> low = load_vec<4>(sums + line * PITCH + at);
                    const Vec<float, 4> high = load_vec<4>(sums + line * PITCH + at + 4);
                    f(row, column, Vec<float, 8>{{low.v[0], low.v[1], low.v[2], low.v[3], high.v[0], high.v[1], high.v[2], high.v[3]}});
                }
            }
        }
    }
};

// 8 elements, widened, and rounded.
template <class T>
__device__ __forceinline__ Vec<float, 8> widened(const T* p) {
    const Vec<T, 8> stored = load_vec<8>(p);
    Vec<float, 8> wide;
#pragma unroll
    for (int i = 0; i < 8; ++i) wide.v[i] = load(stored.v[i]);
    return wide;
}
template <class T>
__device__ __forceinline__ void store_rounded(T* p, const Vec<float, 8>& wide) {
    Vec<T, 8> rounded;
#pragma unroll
    for (int i = 0; i < 8; ++i) rounded.v[i] = store<T>(wide.v[i]);
    store_vec<8>(p, rounded);
}

// The tiles that the launch code chooses from (src/cuda/wide.rs): shared memory for all of them is below the 99 kB that
// the smallest devices give a block, so that two of the middle one share a multiprocessor of the large devices.
template <class T>
using Tile128x256 = Wide<T, 128, 256, 64, 64>;
template <class T>
using Tile128x128 = Wide<T, 128, 128, 64, 64>;
// For sources that take registers: half as wide a warp.
template <class T>
using Gather128x128 = Wide<T, 128, 128, 64, 32>;
template <class T>
using Tile64x64 = Wide<T, 64, 64, 32, 32>;
