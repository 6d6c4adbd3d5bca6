// Operands of the tensor cores out of shared memory, and a twin for the host.
#pragma once
#include "elem.cuh"

// What lies side by side in memory: elements of a row of A (a column of B) along k, or those of one k along the rows.
enum Neighbours { ALONG_K, ALONG_ROWS };

// Four 8 x 8 matrices of two-byte elements from shared memory: lane l gives the address of row l % 8 of matrix l / 8
// and receives of each matrix row l / 4, columns l % 4 * 2 and the next; `ldmatrix_transposed` columns for rows.
#ifdef __CUDACC__
__device__ __forceinline__ void ldmatrix(uint32_t (&r)[4], const void* row) {
    uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
                              : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}
__device__ __forceinline__ void ldmatrix_transposed(uint32_t (&r)[4], const void* row) {
    uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];"
                              : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}
#else
namespace cuda_cpu {
template <bool TRANSPOSED>
UNWATCHED void ldmatrix_combine(Fiber** lanes, uint32_t) {
    uint16_t m[4][8][8];
    for (int l = 0; l < 32; ++l) {
        const void* row;
        memcpy(&row, lanes[l]->val, sizeof row);
        memcpy(m[l / 8][l % 8], row, 16);
    }
    for (int l = 0; l < 32; ++l)
        for (int k = 0; k < 4; ++k)
            for (int i = 0; i < 2; ++i) {
                int r = l / 4, c = l % 4 * 2 + i;
                memcpy(lanes[l]->res + k * 4 + i * 2, TRANSPOSED ? &m[k][c][r] : &m[k][r][c], 2);
            }
}
template <bool TRANSPOSED>
UNWATCHED inline void ldmatrix(uint32_t (&r)[4], const void* row) {
    if ((uintptr_t)row % 16) fail("ldmatrix: a row is not aligned to 16 bytes");
    races_read(row, 16, __builtin_return_address(0));
    Fiber* f = g.cur;
    memcpy(f->val, &row, sizeof row);
    warp_collective(0xffffffffu, Mma, ldmatrix_combine<TRANSPOSED>, "ldmatrix");
    memcpy(r, f->res, 16);
}
}  // namespace cuda_cpu
inline void ldmatrix(uint32_t (&r)[4], const void* row) { cuda_cpu::ldmatrix<false>(r, row); }
inline void ldmatrix_transposed(uint32_t (&r)[4], const void* row) { cuda_cpu::ldmatrix<true>(r, row); }
#endif
