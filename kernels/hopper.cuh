// What only Hopper has (sm_90a): barriers that count bytes, the tensor memory accelerator, products of warpgroups. Its twin is
// no part of the emulator but a model for one kernel (kernels/emulator/hopper_model.h), with which ci/check-hopper.sh runs it.
// Names in brackets are sections of the PTX ISA.
#pragma once
#include "elem.cuh"

#if defined(__clang__) && defined(__CUDACC__) && !__has_attribute(grid_constant)
#undef __grid_constant__
#define __grid_constant__  // clang before 18
#endif
// What cuTensorMapEncodeTiled fills.
struct __align__(64) TensorMap {
    uint64_t words[16];
};

#ifdef HOPPER_MODEL
#include "hopper_model.h"
#elif defined(__CUDA_ARCH_FEAT_SM90_ALL)
__device__ __forceinline__ uint32_t in_shared(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }

// [mbarrier] A barrier starts in phase 0, which is over after `count` arrivals and all expected bytes.
__device__ __forceinline__ void barrier_init(uint32_t barrier, uint32_t count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
__device__ __forceinline__ void arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// An arrival that announces bytes, before the copies that bring them.
__device__ __forceinline__ void arrive_expecting(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Waits for the end of the phase of this parity. Of a new barrier the phase of parity 1 counts as over.
__device__ __forceinline__ void wait(uint32_t barrier, uint32_t parity) {
    const long long start = clock64();
    for (;;) {
        uint32_t over;
        asm volatile(
            "{\n.reg .pred p;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
            "selp.u32 %0, 1, 0, p;\n}"
            : "=r"(over)
            : "r"(barrier), "r"(parity)
            : "memory");
        if (over) return;
        if (clock64() - start > (1ll << 33)) __trap();
    }
}

// [cp.async.bulk.tensor] The box at (x, y, z) of the map, zeros where that is outside; all its bytes count.
__device__ __forceinline__ void load_box(uint32_t to, const TensorMap* map, int x, int y, int z, uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(to),
        "l"(map), "r"(x), "r"(y), "r"(z), "r"(barrier)
        : "memory");
}

// The copy engine, which works in the async proxy, sees new barriers.
__device__ __forceinline__ void barriers_ready() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// [wgmma.mma_async] d (64, 256) += a (64, 16) b (16, 256); the last two numbers are 1 for operands that lie along
// rows. d[4 j ..]: rows 16 warp + lane / 4 and 8 below, columns 8 j + lane % 4 * 2 and the next.
#define D1(i) "+f"(d[i])
#define D8(i) D1(i), D1(i + 1), D1(i + 2), D1(i + 3), D1(i + 4), D1(i + 5), D1(i + 6), D1(i + 7)
#define D32(i) D8(i), D8(i + 8), D8(i + 16), D8(i + 24)
#define WGMMA(TYPE)                                                                                              \
    asm volatile(                                                                                                \
        "wgmma.mma_async.sync.aligned.m64n256k16.f32." TYPE "." TYPE " {"                                        \
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
        "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
        "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63," \
        "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79," \
        "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95," \
        "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111," \
        "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127" \
        "},%128,%129,1,1,1,%130,%131;"                                                                           \
        : D32(0), D32(32), D32(64), D32(96)                                                                      \
        : "l"(a), "l"(b), "n"(ROWS_A), "n"(ROWS_B))
template <int ROWS_A, int ROWS_B>
__device__ __forceinline__ void wgmma(float (&d)[128], uint64_t a, uint64_t b, bf16) {
    WGMMA("bf16");
}
template <int ROWS_A, int ROWS_B>
__device__ __forceinline__ void wgmma(float (&d)[128], uint64_t a, uint64_t b, f16) {
    WGMMA("f16");
}
// Orders what was done to registers and, of this thread, to shared memory before the products that follow.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
// `threads` threads, all of whole warps, meet at barrier `id`; 0 is that of __syncthreads.
__device__ __forceinline__ void meet(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
#undef D1
#undef D8
#undef D32
#undef WGMMA
#endif
