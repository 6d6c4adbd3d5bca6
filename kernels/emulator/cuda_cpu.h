// Runs a plain-CUDA .cu file on the CPU: every CUDA thread of a block is a fiber, blocks run one after the
// other. Deterministic; one launch at a time per process (shared memory is `static`, so that AddressSanitizer
// sees its bounds).
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include "races.h"

#define CUDA_CPU 1
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
// Dynamic shared memory; kernels/elem.cuh has the same macro for nvcc.
#define DYN_SHARED(T, name) T* name = reinterpret_cast<T*>(cuda_cpu::dyn_shared())

struct uint2 {
    unsigned x, y;
};
struct uint3 {
    unsigned x, y, z;
};
struct __align__(16) uint4 { unsigned x, y, z, w; };
struct __align__(8) int2 { int x, y; };
struct __align__(16) int4 { int x, y, z, w; };
struct __align__(8) float2 { float x, y; };
struct __align__(16) float4 { float x, y, z, w; };
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
inline uint2 make_uint2(unsigned a, unsigned b) { return {a, b}; }
inline uint4 make_uint4(unsigned a, unsigned b, unsigned c, unsigned d) { return {a, b, c, d}; }
inline float2 make_float2(float a, float b) { return {a, b}; }
inline float4 make_float4(float a, float b, float c, float d) { return {a, b, c, d}; }

#ifdef EMULATOR_RACES
#define UNWATCHED __attribute__((no_sanitize("thread"), noinline))
#else
#define UNWATCHED
#endif
namespace cuda_cpu {
enum State : uint8_t { Ready, WaitBlock, WaitWarp, Done };
struct Fiber {
    void* sp;
    uint3 tid;
    unsigned lin;
    State state;
    uint32_t mask;
    int op;
    const char* where;  // pending warp collective
    unsigned char val[64];
    unsigned char res[64];
    int arg;
    void* fake;  // ASan
    Clock clock;
};
struct Ctx {
    dim3 grid, block;
    uint3 bid;
    Fiber* cur;
};
extern Ctx g;
void* dyn_shared();
bool is_watched(uintptr_t at);
int block_barrier(int pred, int mode, const char* where);  // mode 0 plain, 1 count, 2 and, 3 or
using Combine = void (*)(Fiber** lanes, uint32_t mask);    // lanes[0..32), null outside the warp
void warp_collective(uint32_t mask, int op, Combine f, const char* where);
[[noreturn]] void fail(const std::string& why);
// Copies of 16 bytes to shared memory, in groups: written when the thread waits for all its groups but the last `pending`.
void copy_later(void* to, const unsigned char* data, const void* pc);
void copies_commit();
void copies_wait(unsigned pending);
using Call = void (*)(void** args);
struct Kernel {
    const char* name;
    Call call;
    std::string (*signature)();
    Kernel* next;
};
void register_kernel(Kernel*);
template <class... A, size_t... I>
void unpack(void (*k)(A...), void** args, std::index_sequence<I...>) {
    k(*static_cast<std::remove_reference_t<A>*>(args[I])...);
}
template <class... A>
constexpr size_t arity(void (*)(A...)) {
    return sizeof...(A);
}
// What a launch has to pass: "f32*" for memory that is written, "const f32*" for memory that is read, "i64"
// ...
template <class T>
std::string kind();
template <class... A>
std::string kinds(void (*)(A...)) {
    std::string all;
    ((all += (all.empty() ? "" : ", ") + kind<A>()), ...);
    return all;
}
}  // namespace cuda_cpu
#define threadIdx (cuda_cpu::g.cur->tid)
#define blockIdx (cuda_cpu::g.bid)
#define blockDim (cuda_cpu::g.block)
#define gridDim (cuda_cpu::g.grid)
constexpr int warpSize = 32;
#define CUDA_CPU_STR2(x) #x
#define CUDA_CPU_STR(x) CUDA_CPU_STR2(x)
namespace cuda_cpu {
template <auto K>
void call_kernel(void** a) {
    unpack(K, a, std::make_index_sequence<arity(K)>{});
}
template <auto K>
std::string signature() {
    return kinds(K);
}
struct Registration {
    Kernel k;
    Registration(const char* n, Call c, std::string (*s)()) : k{n, c, s, nullptr} { register_kernel(&k); }
};
}  // namespace cuda_cpu
// Makes a kernel launchable by name; build.rs appends a line for each.
#define EMULATOR_EXPORT(k)                                                            \
    static cuda_cpu::Registration registration_of_##k(#k, &cuda_cpu::call_kernel<&k>, \
                                                      &cuda_cpu::signature<&k>);

// ---- barriers and warp collectives
#define CUDA_CPU_HERE __FILE__ ":" CUDA_CPU_STR(__LINE__)
#define __syncthreads() ((void)cuda_cpu::block_barrier(0, 0, CUDA_CPU_HERE))
#define __syncthreads_count(p) cuda_cpu::block_barrier(!!(p), 1, CUDA_CPU_HERE)
#define __syncthreads_and(p) cuda_cpu::block_barrier(!!(p), 2, CUDA_CPU_HERE)
#define __syncthreads_or(p) cuda_cpu::block_barrier(!!(p), 3, CUDA_CPU_HERE)
namespace cuda_cpu {
enum Op { ShflIdx, ShflUp, ShflDown, ShflXor, Ballot, SyncWarp, Match, Mma };
inline unsigned lane() { return g.cur->lin & 31; }
template <int OP>
UNWATCHED void shfl_combine(Fiber** l, uint32_t mask) {
    for (int i = 0; i < 32; ++i)
        if (mask >> i & 1) {
            int w = l[i]->arg >> 16, a = (int16_t)(l[i]->arg & 0xffff), seg = i & ~(w - 1), s = i;
            if (OP == ShflIdx) s = seg + (a & (w - 1));
            if (OP == ShflUp) s = i - a >= seg ? i - a : i;
            if (OP == ShflDown) s = i + a < seg + w ? i + a : i;
            if (OP == ShflXor) s = (i ^ a) < seg + w ? i ^ a : i;
            if (!(mask >> s & 1)) {
                fail(std::string("shuffle reads lane ") + std::to_string(s) +
                     ", which is not in the mask, at " + l[i]->where);
            }
            memcpy(l[i]->res, l[s]->val, 8);
        }
}
template <int OP, class T>
UNWATCHED T shfl(uint32_t mask, T v, int a, int w, const char* where) {
    static_assert(sizeof(T) <= 8, "");
    Fiber* f = g.cur;
    __builtin_memcpy(f->val, &v, sizeof v);
    f->arg = (w << 16) | (a & 0xffff);
    warp_collective(mask, OP, shfl_combine<OP>, where);
    T r;
    __builtin_memcpy(&r, f->res, sizeof r);
    return r;
}
UNWATCHED inline void ballot_combine(Fiber** l, uint32_t mask) {
    uint32_t b = 0;
    for (int i = 0; i < 32; ++i)
        if ((mask >> i & 1) && l[i]->arg) b |= 1u << i;
    for (int i = 0; i < 32; ++i)
        if (mask >> i & 1) memcpy(l[i]->res, &b, 4);
}
UNWATCHED inline uint32_t ballot(uint32_t mask, int p, const char* where) {
    g.cur->arg = p;
    warp_collective(mask, Ballot, ballot_combine, where);
    uint32_t r;
    memcpy(&r, g.cur->res, 4);
    return r;
}
inline void nothing(Fiber**, uint32_t) {}
}  // namespace cuda_cpu
template <class T>
T cuda_cpu_shfl_(uint32_t m, T v, int s, const char* at, int w = 32) {
    return cuda_cpu::shfl<cuda_cpu::ShflIdx>(m, v, s, w, at);
}
#define CUDA_CPU_SHFL(OP)                                        \
    [](const char* at) {                                         \
        return [at](uint32_t m, auto v, int a, int w = 32) {     \
            return cuda_cpu::shfl<cuda_cpu::OP>(m, v, a, w, at); \
        };                                                       \
    }(CUDA_CPU_HERE)
#define __shfl_sync CUDA_CPU_SHFL(ShflIdx)
#define __shfl_up_sync CUDA_CPU_SHFL(ShflUp)
#define __shfl_down_sync CUDA_CPU_SHFL(ShflDown)
#define __shfl_xor_sync CUDA_CPU_SHFL(ShflXor)
#define __ballot_sync(m, p) cuda_cpu::ballot(m, !!(p), CUDA_CPU_HERE)
#define __any_sync(m, p) (cuda_cpu::ballot(m, !!(p), CUDA_CPU_HERE) != 0)
#define __all_sync(m, p) (cuda_cpu::ballot(m, !(p), CUDA_CPU_HERE) == 0)
namespace cuda_cpu {
inline void syncwarp(const char* where, uint32_t mask = 0xffffffffu) { warp_collective(mask, SyncWarp, nothing, where); }
}  // namespace cuda_cpu
#define __syncwarp(...) cuda_cpu::syncwarp(CUDA_CPU_HERE __VA_OPT__(, ) __VA_ARGS__)
inline void __threadfence() {}
inline void __threadfence_block() {}

// ---- atomics: one OS thread runs everything
namespace cuda_cpu {
template <class T, class F>
UNWATCHED T rmw(T* p, F f) {
    races_atomic(p, sizeof(T));
    T o = *p;
    *p = f(o);
    return o;
}
}  // namespace cuda_cpu
template <class T, class U>
T atomicAdd(T* p, U v) {
    return cuda_cpu::rmw(p, [=](T o) { return (T)(o + (T)v); });
}
template <class T, class U>
T atomicSub(T* p, U v) {
    return cuda_cpu::rmw(p, [=](T o) { return (T)(o - (T)v); });
}
template <class T, class U>
T atomicMax(T* p, U v) {
    return cuda_cpu::rmw(p, [=](T o) { return (T)v > o ? (T)v : o; });
}
template <class T, class U>
T atomicMin(T* p, U v) {
    return cuda_cpu::rmw(p, [=](T o) { return (T)v < o ? (T)v : o; });
}
template <class T, class U>
T atomicExch(T* p, U v) {
    return cuda_cpu::rmw(p, [=](T) { return (T)v; });
}
template <class T, class U>
T atomicCAS(T* p, U c, U v) {
    return cuda_cpu::rmw(p, [=](T o) { return o == (T)c ? (T)v : o; });
}
// ---- intrinsics
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return (uint32_t)(((uint64_t)a * b) >> 32); }
inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline float __uint_as_float(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}
inline uint32_t __float_as_uint(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}
inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline void sincospi(double x, double* s, double* c) {
    const double rest = std::fmod(x, 2.) * 3.14159265358979323846;
    *s = std::sin(rest), *c = std::cos(rest);
}
template <class T>
T __ldg(const T* p) {
    return *p;
}
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
// Overloaded, as in device code: a float stays a float.
using std::exp;
using std::expm1;
using std::fabs;
using std::floor;
using std::fma;
using std::fmax;
using std::fmin;
using std::log;
using std::log1p;
using std::round;
using std::sqrt;
using std::tanh;
#define __CUDA_ALIGN__ __align__

#include "cuda_bf16.h"
#include "cuda_fp16.h"
namespace cuda_cpu {
template <class T>
std::string kind() {
    if constexpr (std::is_pointer_v<T>) {
        using P = std::remove_pointer_t<T>;
        return (std::is_const_v<P> ? "const " : "") + kind<std::remove_const_t<P>>() + "*";
    } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
        return "bf16";
    } else if constexpr (std::is_same_v<T, __half>) {
        return "f16";
    } else if constexpr (std::is_class_v<T>) {
        return "struct of " + std::to_string(sizeof(T));
    } else {
        const char* letter = std::is_floating_point_v<T> ? "f" : std::is_signed_v<T> ? "i" : "u";
        return letter + std::to_string(8 * sizeof(T));
    }
}
}  // namespace cuda_cpu
