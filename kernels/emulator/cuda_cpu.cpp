#include "cuda_cpu.h"
#include <sys/mman.h>
#include <mutex>
#include <vector>
#ifndef __has_feature
#define __has_feature(x) 0  // gcc 12
#endif
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
#define EMULATOR_ASAN 1
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
namespace cuda_cpu {
Ctx g;
static Kernel* kernels;
void register_kernel(Kernel* k) {
    k->next = kernels;
    kernels = k;
}

#if defined(__x86_64__)
extern "C" void cuda_cpu_switch(void** from, void* to);
asm(R"(
.text
.globl cuda_cpu_switch
.type cuda_cpu_switch,@function
cuda_cpu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_cpu_switch,.-cuda_cpu_switch
)");
#elif defined(__aarch64__)
extern "C" void cuda_cpu_switch(void** from, void* to);
asm(R"(
.text
.globl cuda_cpu_switch
cuda_cpu_switch:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
)");
#else
#error "add a context switch (or ucontext) for this processor"
#endif

constexpr size_t STACK = 256 * 1024, PAGE = 4096, MAXT = 1024;
static char* stacks;
static Fiber* fibers;
static void* sched_sp;
[[maybe_unused]] static void* sched_fake;
[[maybe_unused]] static const void* sched_bottom;
[[maybe_unused]] static size_t sched_size;
static unsigned nthreads, alive, at_barrier;
static int bar_count, bar_mode, bar_result[2];
static unsigned bar_gen;
static const char* bar_where;
static std::vector<unsigned char> dyn;
static unsigned char* dyn_ptr;
static Call call;
static void** call_args;
static std::string error;
static std::mutex lock;
static uint32_t warp_wait[32], warp_done[32];
struct Copy {
    void* to;
    unsigned char data[16];
    const void* pc;
    unsigned group;
};
static std::vector<Copy> copies[MAXT];
static unsigned groups[MAXT];

void* dyn_shared() { return dyn_ptr; }
// Memory that threads of a device could share: not their stacks, nor what stands for their registers.
bool is_watched(uintptr_t at) {
    return at - (uintptr_t)stacks >= STACK * MAXT && at - (uintptr_t)fibers >= MAXT * sizeof(Fiber) &&
           at - (uintptr_t)&g >= sizeof g;
}
static char* stack_of(unsigned i) { return stacks + (size_t)i * STACK; }

static void to_sched(bool dying) {
    Fiber* f = g.cur;
#ifdef EMULATOR_ASAN
    __sanitizer_start_switch_fiber(dying ? nullptr : &f->fake, sched_bottom, sched_size);
#endif
    (void)dying;
    cuda_cpu_switch(&f->sp, sched_sp);
#ifdef EMULATOR_ASAN
    __sanitizer_finish_switch_fiber(f->fake, nullptr, nullptr);
#endif
}
static void run(Fiber* f) {
    g.cur = f;
#ifdef EMULATOR_ASAN
    __sanitizer_start_switch_fiber(&sched_fake, stack_of(f->lin) + PAGE, STACK - PAGE);
#endif
    cuda_cpu_switch(&sched_sp, f->sp);
#ifdef EMULATOR_ASAN
    __sanitizer_finish_switch_fiber(sched_fake, nullptr, nullptr);
#endif
}
static void __attribute__((noreturn)) entry() {
#ifdef EMULATOR_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &sched_bottom, &sched_size);
#endif
    call(call_args);
    if (!copies[g.cur->lin].empty()) fail("a thread exits before the copies that it asked for are there");
    g.cur->state = Done;
    --alive;
    warp_done[g.cur->lin / 32] |= 1u << (g.cur->lin & 31);
    to_sched(true);
    abort();
}
void fail(const std::string& why) {
    Fiber* f = g.cur;
    char b[160];
    snprintf(b, sizeof b, " [block (%u,%u,%u) thread (%u,%u,%u)]", g.bid.x, g.bid.y, g.bid.z, f->tid.x,
             f->tid.y, f->tid.z);
    if (error.empty()) error = why + b;
    to_sched(true);
    abort();
}
void copy_later(void* to, const unsigned char* data, const void* pc) {
    Copy copy = {to, {}, pc, groups[g.cur->lin]};
    memcpy(copy.data, data, sizeof copy.data);
    copies[g.cur->lin].push_back(copy);
}
void copies_commit() { ++groups[g.cur->lin]; }
void copies_wait(unsigned pending) {
    const unsigned committed = groups[g.cur->lin];
    auto& mine = copies[g.cur->lin];
    mine.erase(std::remove_if(mine.begin(), mine.end(),
                              [&](const Copy& copy) {
                                  if (copy.group + pending >= committed) return false;
                                  races_write(copy.to, sizeof copy.data, copy.pc);
                                  memcpy(copy.to, copy.data, sizeof copy.data);
                                  return true;
                              }),
               mine.end());
}
int block_barrier(int pred, int mode, const char* where) {
    if (at_barrier == 0) {
        bar_mode = mode;
        bar_where = where;
        bar_count = 0;
    } else if (bar_mode != mode || strcmp(bar_where, where))
        fail(std::string("threads of one block wait at different barriers: ") + bar_where + " and " + where);
    bar_count += pred;
    unsigned gen = bar_gen;
    if (++at_barrier == nthreads) {
        bar_result[gen & 1] = mode == 2 ? bar_count == (int)nthreads : mode == 3 ? bar_count > 0 : bar_count;
        at_barrier = 0;
        ++bar_gen;
        for (unsigned i = 0; i < nthreads; ++i)
            if (fibers[i].state == WaitBlock) fibers[i].state = Ready;
    } else {
        g.cur->state = WaitBlock;
        g.cur->where = where;
        to_sched(false);
    }
    ++g.cur->clock.barriers;
    return bar_result[gen & 1];
}
void warp_collective(uint32_t mask, int op, Combine f, const char* where) {
    Fiber* me = g.cur;
    unsigned base = me->lin & ~31u, l = me->lin & 31;
    uint32_t exist = nthreads - base >= 32 ? 0xffffffffu : (1u << (nthreads - base)) - 1;
    if (!(mask >> l & 1)) fail(std::string("the calling lane is not in its own mask at ") + where);
    if (mask == 0xffffffffu) mask = exist;  // a partial last warp: its missing lanes do not exist
    if (mask & ~exist) fail(std::string("the mask names lanes that do not exist at ") + where);
    me->mask = mask;
    me->op = op;
    me->where = where;
    me->state = WaitWarp;
    uint32_t& waiting = warp_wait[base / 32];
    waiting |= 1u << l;
    bool all = (waiting & mask) == mask;
    if (uint32_t gone = warp_done[base / 32] & mask)
        fail(std::string("lane ") + std::to_string(__builtin_ctz(gone)) +
             " named by the mask has exited, at " + where);
    for (int i = 0; i < 32 && all; ++i)
        if (mask >> i & 1) {
            Fiber& o = fibers[base + i];
            if (o.mask != mask) all = false;
            else if (o.op != op)
                fail(std::string("lanes of one warp meet in different collectives: ") + o.where + " and " +
                     where);
        }
    if (all) {
        Fiber* lanes[32];
        for (int i = 0; i < 32; ++i) lanes[i] = exist >> i & 1 ? &fibers[base + i] : nullptr;
        f(lanes, mask);
        if (op == SyncWarp) {
            Clock* clocks[32];
            for (int i = 0; i < 32; ++i) clocks[i] = lanes[i] ? &lanes[i]->clock : nullptr;
            races_sync(clocks, mask);
        }
        waiting &= ~mask;
        for (int i = 0; i < 32; ++i)
            if (mask >> i & 1) fibers[base + i].state = Ready;
    } else to_sched(false);
}
static void setup(unsigned i) {
    char* s = stack_of(i);
#ifdef EMULATOR_ASAN
    __asan_unpoison_memory_region(s + PAGE, STACK - PAGE);
#endif
    void** top = reinterpret_cast<void**>(
        s + STACK - 64 - (i * 37 % 128) * 64);  // coloured: equal offsets would share one cache set
#if defined(__x86_64__)
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(&entry);
    for (int k = 0; k < 6; ++k) *--top = nullptr;
#else
    top -= 20;
    memset(top, 0, 160);
    top[11] = reinterpret_cast<void*>(&entry);
#endif
    Fiber& f = fibers[i];
    f.sp = top;
    f.lin = i;
    f.state = Ready;
    f.fake = nullptr;
    f.clock = {};
    f.tid = {i % g.block.x, i / g.block.x % g.block.y, i / (g.block.x * g.block.y)};
}
static uint64_t mix(uint64_t x) {
    x += 0x9E3779B97F4A7C15ull;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ x >> 27) * 0x94D049BB133111EBull;
    return x ^ x >> 31;
}
static bool block(uint64_t order) {
    alive = nthreads;
    at_barrier = 0;
    races_block();
    memset(warp_wait, 0, sizeof warp_wait);
    memset(warp_done, 0, sizeof warp_done);
    if (dyn_ptr) memset(dyn_ptr, 0xA5, dyn.size() - 128);  // shared memory starts undefined
    static unsigned perm[MAXT];
    for (unsigned i = 0; i < nthreads; ++i) {
        copies[i].clear();
        groups[i] = 0;
        setup(i);
        perm[i] = order == 1 ? nthreads - 1 - i : i;
    }
    if (order > 1)
        for (unsigned i = nthreads - 1; i > 0; --i)
            std::swap(perm[i], perm[mix(order ^ i ^ (uint64_t)g.bid.x << 32) % (i + 1)]);
    bool ok = true;
    while (alive && ok) {
        bool ran = false;
        for (unsigned j = 0; j < nthreads; ++j) {
            Fiber& f = fibers[perm[j]];
            if (f.state == Ready) {
                ran = true;
                run(&f);
                if (!error.empty()) {
                    ok = false;
                    break;
                }
            }
        }
        if (!ran && alive) {
            unsigned nb = 0, nw = 0;
            const char *wb = "", *ww = "";
            for (unsigned i = 0; i < nthreads; ++i) {
                if (fibers[i].state == WaitBlock) {
                    ++nb;
                    wb = fibers[i].where;
                }
                if (fibers[i].state == WaitWarp) {
                    ++nw;
                    ww = fibers[i].where;
                }
            }
            char b[400];
            snprintf(b, sizeof b,
                     "deadlock in block (%u,%u,%u): %u threads wait at the block barrier %s, %u in a warp "
                     "collective %s, %u have exited",
                     g.bid.x, g.bid.y, g.bid.z, nb, wb, nw, ww, nthreads - alive);
            error = b;
            ok = false;
        }
    }
    return ok;
}
}  // namespace cuda_cpu
extern "C" int surprisal_emulator_finds_races() {
#ifdef EMULATOR_RACES
    return 1;
#else
    return 0;
#endif
}
// The arguments are those of cuLaunchKernel and what the caller takes their kinds for ("f32*, const f32*,
// i64"). order: 0 forward, 1 backward, else a seed (to show races). Returns 0, or 1 with a message in err.
extern "C" int surprisal_emulator_launch(const char* name, const char* kinds, const unsigned* grid,
                                         const unsigned* blk, unsigned shmem, void** args, uint64_t order,
                                         char* err, size_t errlen) {
    using namespace cuda_cpu;
    std::lock_guard<std::mutex> guard(lock);
    auto no = [&](const std::string& s) {
        snprintf(err, errlen, "%s: %s", name, s.c_str());
        return 1;
    };
    Kernel* k = kernels;
    while (k && strcmp(k->name, name)) k = k->next;
    if (!k) return no("no such kernel");
    if (k->signature() != kinds) return no("takes (" + k->signature() + "), was given (" + kinds + ")");
    uint64_t n = (uint64_t)blk[0] * blk[1] * blk[2];
    if (n == 0 || n > MAXT || !grid[0] || !grid[1] || !grid[2] || grid[1] > 65535 || grid[2] > 65535 ||
        blk[2] > 64)
        return no("invalid launch configuration");
    if (shmem > 227 * 1024) return no("more dynamic shared memory than sm_90 has");
    if (!stacks) {
        stacks = (char*)mmap(nullptr, STACK * MAXT, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (stacks == MAP_FAILED) {
            stacks = nullptr;
            return no("no memory for the stacks");
        }
        for (unsigned i = 0; i < MAXT; ++i) mprotect(stack_of(i), PAGE, PROT_NONE);
        fibers = (Fiber*)calloc(MAXT, sizeof(Fiber));
    }
    g.grid = dim3(grid[0], grid[1], grid[2]);
    g.block = dim3(blk[0], blk[1], blk[2]);
    nthreads = (unsigned)n;
    call = k->call;
    call_args = args;
    error.clear();
    dyn.assign(shmem + 128, 0);
    dyn_ptr = nullptr;
    if (shmem) dyn_ptr = (unsigned char*)(((uintptr_t)dyn.data() + 127) & ~(uintptr_t)127);
#ifdef EMULATOR_ASAN
    dyn_ptr = shmem ? (unsigned char*)aligned_alloc(128, (shmem + 127) / 128 * 128)
                    : nullptr;  // its own allocation: exact bounds
    if (dyn_ptr) {
        dyn.resize(shmem + 128);
        __asan_poison_memory_region(dyn_ptr + shmem, (shmem + 127) / 128 * 128 - shmem);
    }
#endif
    races_launch(dyn_ptr, shmem);
    bool ok = true;
    for (unsigned z = 0; z < grid[2] && ok; ++z)
        for (unsigned y = 0; y < grid[1] && ok; ++y)
            for (unsigned x = 0; x < grid[0] && ok; ++x) {
                g.bid = {x, y, z};
                ok = block(order);
            }
    g.cur = nullptr;
#ifdef EMULATOR_ASAN
    if (dyn_ptr) {
        __asan_unpoison_memory_region(dyn_ptr, (shmem + 127) / 128 * 128);
        free(dyn_ptr);
    }
#endif
    return ok ? 0 : no(error);
}
