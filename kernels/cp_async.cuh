// Copies from global to shared memory that go on behind a thread's back (cp.async of sm_80), and a twin for the host: it
// leaves NaN patterns in shared memory until the thread waits, so that what reads too early shows.
#pragma once
#include "elem.cuh"

// Asks for 16 bytes of `from`, or for zeros where nothing is `there` (then nothing is read). Both are aligned to 16 bytes.
#ifdef __CUDACC__
__device__ __forceinline__ void copy_async(void* to, const void* from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0],[%1],16,%2;" ::"r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from),
                 "r"(there ? 16 : 0)
                 : "memory");
}
// What this thread asked for since the last commit becomes a group.
__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until all of this thread's groups but the last `pending` are there. Other threads see them behind a barrier.
template <int PENDING>
__device__ __forceinline__ void copies_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}
#else
namespace cuda_cpu {
UNWATCHED inline void copy_async(void* to, const void* from, bool there) {
    if ((uintptr_t)to % 16 || (there && (uintptr_t)from % 16)) fail("copy_async: not aligned to 16 bytes");
    const void* pc = __builtin_return_address(0);
    unsigned char data[16] = {};
    if (there) races_read(from, 16, pc), memcpy(data, from, 16);
    // It may be written at any time from here to the wait.
    races_write(to, 16, pc);
    memset(to, 0xff, 16);
    copy_later(to, data, pc);
}
}  // namespace cuda_cpu
inline void copy_async(void* to, const void* from, bool there) { cuda_cpu::copy_async(to, from, there); }
inline void copies_commit() { cuda_cpu::copies_commit(); }
template <int PENDING>
inline void copies_wait() {
    cuda_cpu::copies_wait(PENDING);
}
#endif
