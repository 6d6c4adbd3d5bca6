// C = act(op(A) op(B) + bias) as in matmul.cu, for bf16 and f16 on sm_90a: the tensor memory accelerator (TMA) copies, warpgroups
// multiply out of shared memory (wgmma). It has run on a model of these alone (ci/check-hopper.sh), not on a device yet: off
// unless asked for (src/ops/matmul/sm90a.rs), and checked against matmul.cu before its first use.
//
// A block makes 128 x 256 of C. Threads 0..128 are the producer, of whom one works; two warpgroups of consumers have 64 rows
// each. Slices of 64 along k pass through a ring of 4 stages: `full[s]` is complete when the bytes of stage s are there,
// `empty[s]` when all 8 warps of consumers are done with them. Waits that last seconds trap: an error, not a hang.
// Bytes, flops: as there; 85 flops to a byte of L2. Bound: tensor cores (SASS: HGMMA+UTMALDG in matmul_wgmma).
#include "gemm.cuh"
#include "hopper.cuh"
#include "product.cuh"
#include "wide.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(HOPPER_MODEL)
namespace {
constexpr int M = 128, N = 256, K = 64, STAGES = 4, CONSUMERS = 256;
constexpr uint32_t BYTES_A = M * K * 2, BYTES_B = N * K * 2, STAGE = BYTES_A + BYTES_B;
// A swizzled box of TMA: 64 elements (128 bytes) of what lies side by side, by up to 256 lines.
constexpr uint32_t LINE = 128, ATOM = 8 * LINE;

// [wgmma: Matrix Descriptor, Strides] Address, leading and stride offsets without their low 4 bits; swizzle of 128 bytes is 1 in
// bits 62-63; base offset 0, as every stage starts at a multiple of the 1024 bytes of a swizzle atom (8 lines of 128 bytes).
// Along k (K-major) a line is 64 elements of one row: the stride is from 8 rows to the next 8, the leading offset is not used,
// and 16 along k are 32 bytes within the line, since the swizzle is of the address. Along rows (MN-major) a line is 64 rows
// of one k: the stride is from 8 k to the next 8, the leading offset from 64 rows to the next 64, 16 along k are two atoms.
__device__ __forceinline__ uint64_t descriptor(uint32_t address, uint32_t leading, uint32_t stride) {
    return (uint64_t)((address & 0x3ffff) >> 4) | (uint64_t)(leading >> 4) << 16 | (uint64_t)(stride >> 4) << 32 | 1ull << 62;
}

// Stage s of the ring, its barriers and the parity of its phase in this round.
struct Stage {
    uint32_t a, b, full, empty, parity;

    __device__ __forceinline__ Stage(uint32_t ring, int slice) {
        const uint32_t s = (uint32_t)slice % STAGES, barriers = ring + STAGES * STAGE;
        a = ring + s * STAGE, b = a + BYTES_A;
        full = barriers + s * 16, empty = full + 8;
        parity = (uint32_t)slice / STAGES % 2;
    }
};

// Boxes of 64 along k by all rows, or of 64 rows by 64 along k.
template <bool ALONG, uint32_t ROWS>
__device__ __forceinline__ void ask(uint32_t to, const TensorMap* map, int row, int k, int z, uint32_t barrier) {
    if (ALONG) {
        load_box(to, map, k, row, z, barrier);
    } else {
#pragma unroll
        for (uint32_t i = 0; i < ROWS / 64; ++i) load_box(to + i * 64 * LINE, map, row + (int)i * 64, k, z, barrier);
    }
}

template <class T, bool ALONG_A, bool ALONG_B>
__device__ __forceinline__ void consume(float (&d)[128], uint32_t ring, int slices, uint32_t group) {
    const bool speaks = threadIdx.x % 32 == 0;
    for (int slice = 0; slice < slices; ++slice) {
        const Stage stage(ring, slice);
        wait(stage.full, stage.parity);
        wgmma_fence();
#pragma unroll
        for (uint32_t i = 0; i < K / 16; ++i) {
            // 64 rows are 64 lines along k, or one box.
            const uint32_t a = stage.a + group * 64 * LINE + i * (ALONG_A ? 32 : 2 * ATOM);
            const uint32_t b = stage.b + i * (ALONG_B ? 32 : 2 * ATOM);
            wgmma<!ALONG_A, !ALONG_B>(d, descriptor(a, 64 * LINE, ATOM), descriptor(b, 64 * LINE, ATOM), T());
        }
        wgmma_commit();
        // The products of the slice before are done, so its stage is free.
        wgmma_wait<1>();
        if (slice > 0 && speaks) arrive(Stage(ring, slice - 1).empty);
    }
    wgmma_wait<0>();
}

template <class T>
__device__ __forceinline__ void product(T* c, const T* bias, const TensorMap* map_a, const TensorMap* map_b, const Product& p) {
    DYN_SHARED(unsigned char, bytes);
    const uint32_t pad = (ATOM - in_shared(bytes) % ATOM) % ATOM, ring = in_shared(bytes) + pad;
    int64_t m0, n0;
    in_bands(blockIdx.x, (unsigned)((p.m + M - 1) / M), (unsigned)((p.n + N - 1) / N), m0, n0);
    m0 *= M, n0 *= N;
    const int slices = (int)((p.k + K - 1) / K);
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; ++s) {
            const Stage stage(ring, s);
            barrier_init(stage.full, 1);
            barrier_init(stage.empty, CONSUMERS / 32);
        }
        barriers_ready();
    }
    __syncthreads();
    if (threadIdx.x < 128) {
        if (threadIdx.x > 0) return;
        for (int slice = 0; slice < slices; ++slice) {
            const Stage stage(ring, slice);
            // In the first round nobody has to leave: the phase before the first counts as over.
            wait(stage.empty, stage.parity ^ 1);
            arrive_expecting(stage.full, STAGE);
            const int k = slice * K, z = (int)blockIdx.z;
            if (p.transpose_a) ask<false, M>(stage.a, map_a, (int)m0, k, z, stage.full);
            else ask<true, M>(stage.a, map_a, (int)m0, k, z, stage.full);
            if (p.transpose_b) ask<true, N>(stage.b, map_b, (int)n0, k, z, stage.full);
            else ask<false, N>(stage.b, map_b, (int)n0, k, z, stage.full);
        }
        return;
    }
    const uint32_t group = threadIdx.x / 128 - 1;
    float d[128];
#pragma unroll
    for (int i = 0; i < 128; ++i) d[i] = 0.f;
    if (p.transpose_a && p.transpose_b) consume<T, false, true>(d, ring, slices, group);
    else if (p.transpose_a) consume<T, false, false>(d, ring, slices, group);
    else if (p.transpose_b) consume<T, true, true>(d, ring, slices, group);
    else consume<T, true, false>(d, ring, slices, group);
    // Both groups are done with the ring: their sums pass through it, 64 rows each, padded as in wide.cuh.
    meet(1, CONSUMERS);
    constexpr int PITCH = N + 8;
    static_assert(2 * 64 * PITCH * 4 <= STAGES * STAGE, "the sums fit in the ring");
    float* sums = reinterpret_cast<float*>(bytes + pad) + group * 64 * PITCH;
    const int t = (int)threadIdx.x % 128, warp = t / 32, lane = t % 32;
    float* mine = sums + (warp * 16 + lane / 4) * PITCH + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
        store_vec<2>(mine + j * 8, Vec<float, 2>{{d[j * 4], d[j * 4 + 1]}});
        store_vec<2>(mine + 8 * PITCH + j * 8, Vec<float, 2>{{d[j * 4 + 2], d[j * 4 + 3]}});
    }
    meet(2 + (int)group, 128);
    T* z = c + blockIdx.z * p.m * p.n;
#pragma unroll 1
    for (int vec = t; vec < 64 * N / 8; vec += 128) {
        const int line = vec / (N / 8), at = vec % (N / 8) * 8;
        const int64_t row = m0 + group * 64 + line, column = n0 + at;
        if (row >= p.m || column >= p.n) continue;
        Vec<float, 8> v = bias ? widened(bias + column) : Vec<float, 8>{};
#pragma unroll
        for (int q = 0; q < 8; ++q) v.v[q] = activate(p.act, sums[line * PITCH + at + q] + v.v[q]);
        store_rounded(z + row * p.n + column, v);
    }
}
}  // namespace
#define ON_SM90A(...) __VA_ARGS__
#else
#define ON_SM90A(...) (void)c, (void)bias, (void)a, (void)b, (void)p
#endif

extern "C" __global__ void __launch_bounds__(384, 1)
    matmul_wgmma_bf16(bf16* c, const bf16* bias, const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,
                      Product p) {
    ON_SM90A(product(c, bias, &a, &b, p));
}
extern "C" __global__ void __launch_bounds__(384, 1)
    matmul_wgmma_f16(f16* c, const f16* bias, const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,
                     Product p) {
    ON_SM90A(product(c, bias, &a, &b, p));
}
