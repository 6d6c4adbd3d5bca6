// One tile of a matrix product per block of 128 threads: C (M x N) = sum over k of A (M, k) B (k, N), accumulated in f32.
// Two-byte types run on the tensor cores (mma.sync m16n8k16), and so does float as the kind tf32 (m16n8k8), rounded as it is
// put into shared memory; else float runs on the FMA units.
//
// The caller's loaders say what A and B are, so convolutions, their gradients and plain products share this code:
//   a(row, k) -> Vec<T, VA>   row in 0..M of the tile; neighbours along k, or along row when ALONG_ROWS
//   b(col, k) -> Vec<T, VB>   the same for B's columns
// and return zeros outside of the operands. Memory is staged through shared memory, double-buffered, the next chunk
// of k in flight in registers while the present one is multiplied.
#pragma once
#include "ldmatrix.cuh"
#include "mma.cuh"
#include "vec.cuh"

template <class A, class B>
struct is_same {
    static constexpr bool value = false;
};
template <class A>
struct is_same<A, A> {
    static constexpr bool value = true;
};

constexpr int TILE_THREADS = 128;

// M is 4096 / N: four warps of 32 x 32, or without tensor cores 128 threads of 8 x 4.
template <class T, int N, Neighbours NA, Neighbours NB, int VA, int VB, class Kind = T>
struct Tile {
    static constexpr bool TENSOR_CORES = !is_same<Kind, float>::value, ROUNDED = is_same<Kind, tf32>::value;
    static constexpr int M = 4096 / N, K = sizeof(T) == 2 ? 32 : 16;
    // Two-byte types keep the order of memory and pad rows by 16 bytes, which spreads ldmatrix over all banks; float
    // is stored (k, row) for both operands, rows padded to keep float4 aligned, and for tf32 so that the 8 rows by 4 of k of a
    // fragment lie in different banks.
    static constexpr bool KEEP_A = sizeof(T) == 2 && NA == ALONG_K, KEEP_B = sizeof(T) == 2 && NB == ALONG_K;
    static constexpr int PAD = (ROUNDED ? 32 : 16) / sizeof(T);
    static constexpr int PITCH_A = (KEEP_A ? K : M) + PAD, PITCH_B = (KEEP_B ? K : N) + PAD;
    static constexpr int SIZE_A = PITCH_A * (KEEP_A ? M : K), SIZE_B = PITCH_B * (KEEP_B ? N : K);
    static constexpr int BYTES = 2 * (SIZE_A + SIZE_B) * sizeof(T);

    T* shared;
    float acc[32];

    __device__ explicit Tile(void* memory) : shared(static_cast<T*>(memory)) {
#pragma unroll
        for (int i = 0; i < 32; ++i) acc[i] = 0.f;
    }

    // This thread's share of a chunk of one operand: vectors are fetched into registers ahead of their use, single
    // elements (rows that no vector divides) go straight to shared memory, as they would take too many registers.
    template <Neighbours ORDER, bool KEEP, int PITCH, int V, int ROWS>
    struct Operand {
        static constexpr int COUNT = ROWS * K / V / TILE_THREADS;
        static constexpr bool AHEAD = V > 1;
        Vec<T, V> next[AHEAD ? COUNT : 1];

        // Where the i-th vector of this thread starts.
        static __device__ __forceinline__ void place(int i, int& row, int& k) {
            const int vec = threadIdx.x + i * TILE_THREADS;
            if (ORDER == ALONG_K) {
                row = vec / (K / V);
                k = vec % (K / V) * V;
            } else {
                k = vec / (ROWS / V);
                row = vec % (ROWS / V) * V;
            }
        }

        template <class F>
        __device__ __forceinline__ void fetch(const F& f, int k0) {
            if constexpr (AHEAD) {
#pragma unroll
                for (int i = 0; i < COUNT; ++i) {
                    int row, k;
                    place(i, row, k);
                    next[i] = f(row, k0 + k);
                }
            }
        }

        static __device__ __forceinline__ void write(T* s, int row, int k, Vec<T, V> vec) {
            if constexpr (ROUNDED) {
#pragma unroll
                for (int i = 0; i < V; ++i) vec.v[i] = to_tf32(vec.v[i]);
            }
            if (ORDER == ALONG_K && !KEEP) {
#pragma unroll
                for (int i = 0; i < V; ++i) s[(k + i) * PITCH + row] = vec.v[i];
            } else {
                store_vec<V>(s + (KEEP ? row * PITCH + k : k * PITCH + row), vec);
            }
        }

        template <class F>
        __device__ __forceinline__ void put(T* s, const F& f, int k0) {
            int row, k;
            if constexpr (AHEAD) {
#pragma unroll
                for (int i = 0; i < COUNT; ++i) {
                    place(i, row, k);
                    write(s, row, k, next[i]);
                }
            } else {
#pragma unroll 4
                for (int i = 0; i < COUNT; ++i) {
                    place(i, row, k);
                    write(s, row, k, f(row, k0 + k));
                }
            }
        }
    };

    template <class A, class B>
    __device__ __forceinline__ void run(const A& a, const B& b, int k_begin, int k_end) {
        Operand<NA, KEEP_A, PITCH_A, VA, M> left;
        Operand<NB, KEEP_B, PITCH_B, VB, N> right;
        if (k_begin >= k_end) return;
        left.fetch(a, k_begin);
        right.fetch(b, k_begin);
        int buffer = 0;
        for (int k0 = k_begin; k0 < k_end; k0 += K, buffer ^= 1) {
            T* sa = shared + buffer * (SIZE_A + SIZE_B);
            T* sb = sa + SIZE_A;
            left.put(sa, a, k0);
            right.put(sb, b, k0);
            __syncthreads();
            if (k0 + K < k_end) {
                left.fetch(a, k0 + K);
                right.fetch(b, k0 + K);
            }
            multiply(sa, sb);
            // The buffer that is written next was read before the barrier above, by every thread.
        }
        __syncthreads();
    }

    __device__ __forceinline__ void multiply(const T* sa, const T* sb) {
        if constexpr (sizeof(T) == 2) {
            const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, part = lane / 8, line = lane % 8;
            const int m0 = warp / (N / 32) * 32, n0 = warp % (N / 32) * 32;
#pragma unroll
            for (int k = 0; k < K; k += 16) {
                uint32_t fa[2][4], fb[2][4];
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const int m = m0 + i * 16, n = n0 + i * 16;
                    if (KEEP_A) ldmatrix(fa[i], sa + (m + part % 2 * 8 + line) * PITCH_A + k + part / 2 * 8);
                    else ldmatrix_transposed(fa[i], sa + (k + part / 2 * 8 + line) * PITCH_A + m + part % 2 * 8);
                    if (KEEP_B) ldmatrix(fb[i], sb + (n + part / 2 * 8 + line) * PITCH_B + k + part % 2 * 8);
                    else ldmatrix_transposed(fb[i], sb + (k + part % 2 * 8 + line) * PITCH_B + n + part / 2 * 8);
                }
#pragma unroll
                for (int i = 0; i < 2; ++i)
#pragma unroll
                    for (int j = 0; j < 4; ++j) {
                        float(&d)[4] = *reinterpret_cast<float(*)[4]>(acc + (i * 4 + j) * 4);
                        const uint32_t pair[2] = {fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]};
                        mma(d, fa[i], pair, T());
                    }
            }
        } else if constexpr (ROUNDED) {
            const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = lane / 4, col = lane % 4;
            const float* pa = sa + col * PITCH_A + warp / (N / 32) * 32 + row;
            const float* pb = sb + col * PITCH_B + warp % (N / 32) * 32 + row;
#pragma unroll
            for (int k = 0; k < K; k += 8) {
                float fa[2][4], fb[4][2];
#pragma unroll
                for (int i = 0; i < 2; ++i)
#pragma unroll
                    for (int q = 0; q < 4; ++q) fa[i][q] = pa[(k + q / 2 * 4) * PITCH_A + i * 16 + q % 2 * 8];
#pragma unroll
                for (int j = 0; j < 4; ++j)
#pragma unroll
                    for (int q = 0; q < 2; ++q) fb[j][q] = pb[(k + q * 4) * PITCH_B + j * 8];
#pragma unroll
                for (int i = 0; i < 2; ++i)
#pragma unroll
                    for (int j = 0; j < 4; ++j) mma(*reinterpret_cast<float(*)[4]>(acc + (i * 4 + j) * 4), fa[i], fb[j], tf32());
            }
        } else {
            const int m = threadIdx.x / (N / 4) * 8, n = threadIdx.x % (N / 4) * 4;
#pragma unroll
            for (int k = 0; k < K; ++k) {
                const Vec<float, 4> a0 = load_vec<4>(sa + k * PITCH_A + m), a1 = load_vec<4>(sa + k * PITCH_A + m + 4);
                const Vec<float, 4> b = load_vec<4>(sb + k * PITCH_B + n);
#pragma unroll
                for (int i = 0; i < 8; ++i)
#pragma unroll
                    for (int j = 0; j < 4; ++j) acc[i * 4 + j] = fmaf(i < 4 ? a0.v[i % 4] : a1.v[i % 4], b.v[j], acc[i * 4 + j]);
            }
        }
    }

    // Multiplies each row of the sums with f(row).
    template <class F>
    __device__ __forceinline__ void scale_rows(const F& f) {
        if constexpr (TENSOR_CORES) {
            const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, m0 = warp / (N / 32) * 32 + lane / 4;
#pragma unroll
            for (int i = 0; i < 2; ++i)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const float factor = f(m0 + i * 16 + half * 8);
#pragma unroll
                    for (int j = 0; j < 4; ++j)
#pragma unroll
                        for (int q = 0; q < 2; ++q) acc[(i * 4 + j) * 4 + half * 2 + q] *= factor;
                }
        } else {
            const int m = threadIdx.x / (N / 4) * 8;
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const float factor = f(m + i);
#pragma unroll
                for (int j = 0; j < 4; ++j) acc[i * 4 + j] *= factor;
            }
        }
    }

    // f(row, col, v0, v1) for every pair of neighbouring columns (col, col + 1) of the tile that this thread holds.
    template <class F>
    __device__ __forceinline__ void each_pair(const F& f) const {
        if constexpr (TENSOR_CORES) {
            const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
            const int m0 = warp / (N / 32) * 32 + lane / 4, n0 = warp % (N / 32) * 32 + lane % 4 * 2;
#pragma unroll
            for (int i = 0; i < 2; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j)
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const float* d = acc + (i * 4 + j) * 4 + half * 2;
                        f(m0 + i * 16 + half * 8, n0 + j * 8, d[0], d[1]);
                    }
        } else {
            const int m = threadIdx.x / (N / 4) * 8, n = threadIdx.x % (N / 4) * 4;
#pragma unroll
            for (int i = 0; i < 8; ++i)
#pragma unroll
                for (int j = 0; j < 4; j += 2) f(m + i, n + j, acc[i * 4 + j], acc[i * 4 + j + 1]);
        }
    }
};
