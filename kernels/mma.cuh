// The tensor-core product of one warp, d (16, 8) += a (16, K) b (K, 8), with f32 accumulators: mma.sync m16n8k16 for bf16
// and f16, m16n8k8 for f32 rounded to TF32. On the host a warp collective that sums in f64.
#pragma once
#include "elem.cuh"

// Register layout (lane l, r = l / 4, c = 2 (l % 4)): a holds rows r, r + 8 by columns c, c + 1, c + 8, c +
// 9; b holds rows c, c + 1, c + 8, c + 9 of column r; d holds rows r, r + 8 by columns c, c + 1.
#ifdef __CUDACC__
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bf16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], f16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#else
template <class T>
UNWATCHED inline void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], T) {
    cuda_cpu::Fiber* f = cuda_cpu::g.cur;
    memcpy(f->val, a, 16), memcpy(f->val + 16, b, 8), memcpy(f->val + 24, d, 16);
    auto product = [](cuda_cpu::Fiber** lanes, uint32_t) UNWATCHED {
        float A[16][16], B[16][8];
        for (int t = 0; t < 32; ++t) {
            T a[8], b[4];
            memcpy(a, lanes[t]->val, 16), memcpy(b, lanes[t]->val + 16, 8);
            int r = t / 4, c = (t % 4) * 2;
            for (int i = 0; i < 8; ++i) A[r + (i / 2 % 2) * 8][c + i % 2 + (i / 4) * 8] = load(a[i]);
            for (int i = 0; i < 4; ++i) B[c + i % 2 + (i / 2) * 8][r] = load(b[i]);
        }
        for (int t = 0; t < 32; ++t) {
            float d[4];
            memcpy(d, lanes[t]->val + 24, 16);
            int r = t / 4, c = (t % 4) * 2;
            for (int i = 0; i < 4; ++i) {
                double sum = d[i];
                for (int k = 0; k < 16; ++k) sum += (double)A[r + (i / 2) * 8][k] * B[k][c + i % 2];
                d[i] = (float)sum;
            }
            memcpy(lanes[t]->res, d, 16);
        }
    };
    cuda_cpu::warp_collective(0xffffffffu, cuda_cpu::Mma, product, "mma");
    memcpy(d, f->res, 16);
}
#endif

// f32 on the tensor cores, rounded to the 10 bits of a TF32 fraction: a kind of product, not of memory.
struct tf32 {};

// To nearest, ties away from zero (cvt.rna); what tensor cores would do by themselves is to cut off.
__device__ __forceinline__ float to_tf32(float x) {
#ifdef __CUDACC__
    uint32_t bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return __uint_as_float(bits);
#else
    const uint32_t bits = __float_as_uint(x);
    return (bits & 0x7f800000) == 0x7f800000 ? x : __uint_as_float((bits + 0x1000) & 0xffffe000);
#endif
}

// Register layout (lane l, r = l / 4, c = l % 4): a holds (r, c), (r + 8, c), (r, c + 4), (r + 8, c + 4); b holds rows c and
// c + 4 of column r; d as above. The operands come from `to_tf32`.
#ifdef __CUDACC__
__device__ __forceinline__ void mma(float (&d)[4], const float (&a)[4], const float (&b)[2], tf32) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
          "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}
#else
UNWATCHED inline void mma(float (&d)[4], const float (&a)[4], const float (&b)[2], tf32) {
    cuda_cpu::Fiber* f = cuda_cpu::g.cur;
    memcpy(f->val, a, 16), memcpy(f->val + 16, b, 8), memcpy(f->val + 24, d, 16);
    auto product = [](cuda_cpu::Fiber** lanes, uint32_t) UNWATCHED {
        float A[16][8], B[8][8];
        for (int t = 0; t < 32; ++t) {
            float a[4], b[2];
            memcpy(a, lanes[t]->val, 16), memcpy(b, lanes[t]->val + 16, 8);
            const int r = t / 4, c = t % 4;
            for (int i = 0; i < 4; ++i) A[r + i % 2 * 8][c + i / 2 * 4] = a[i];
            for (int i = 0; i < 2; ++i) B[c + i * 4][r] = b[i];
        }
        for (int t = 0; t < 32; ++t) {
            float d[4];
            memcpy(d, lanes[t]->val + 24, 16);
            const int r = t / 4, c = t % 4 * 2;
            for (int i = 0; i < 4; ++i) {
                double sum = d[i];
                for (int k = 0; k < 8; ++k) sum += (double)A[r + i / 2 * 8][k] * B[k][c + i % 2];
                d[i] = (float)sum;
            }
            memcpy(lanes[t]->res, d, 16);
        }
    };
    cuda_cpu::warp_collective(0xffffffffu, cuda_cpu::Mma, product, "mma");
    memcpy(d, f->res, 16);
}
#endif
