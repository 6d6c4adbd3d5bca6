#ifdef EMULATOR_RACES
#include "races.h"
#include <dlfcn.h>
#include <cstdlib>
#include <memory>
#include <unordered_map>
#include <vector>
#include "cuda_cpu.h"

extern "C" char __bss_start, _end;

namespace cuda_cpu {
namespace {
// An access, and what its thread had behind it.
struct Access {
    uint32_t block;  // numbered through all launches, from 1
    uint32_t barriers, own;
    uint16_t thread;
    bool atomic;
    uintptr_t pc;
};
struct Cell {
    Access write, read[2];
};
// 4096 bytes of memory; a cell stands for as many of them as the smallest access needed so far: 4, 2 or 1.
struct Page {
    unsigned shift = 2;
    std::vector<Cell> cells = std::vector<Cell>(4096 >> 2);

    void split(unsigned to) {
        std::vector<Cell> finer(4096 >> to);
        for (size_t i = 0; i < finer.size(); ++i) finer[i] = cells[i >> (shift - to)];
        cells.swap(finer);
        shift = to;
    }
};

std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
struct {
    uintptr_t number;
    Page* page;
} recent[256];
uint32_t block_number, launch_first = 1;
uintptr_t dynamic_begin, dynamic_end;

bool is_shared(uintptr_t at) {
    const bool is_static = at - (uintptr_t)&__bss_start < (uintptr_t)(&_end - &__bss_start);
    return is_static || at - dynamic_begin < dynamic_end - dynamic_begin;
}

Page& page_of(uintptr_t number) {
    auto& slot = recent[number % 256];
    if (!slot.page || slot.number != number) {
        auto& page = pages[number];
        if (!page) page = std::make_unique<Page>();
        slot.number = number;
        slot.page = page.get();
    }
    return *slot.page;
}

// Whether `a` is over before the present thread goes on, or is one of its own.
bool is_before(const Access& a, bool shared) {
    if (a.block != block_number) return shared || a.block < launch_first;
    const Fiber& me = *g.cur;
    if (a.thread == me.lin || a.barriers < me.clock.barriers) return true;
    return a.thread / 32 == me.lin / 32 && me.clock.seen[a.thread % 32] > a.own;
}

// FILE:LINE in the kernels' sources, as addr2line finds it.
std::string line_of(uintptr_t pc) {
    Dl_info info;
    char unknown[32];
    snprintf(unknown, sizeof unknown, "address %zx", (size_t)pc);
    if (!dladdr((void*)pc, &info) || !info.dli_fname) return unknown;
    char command[1024];
    snprintf(command, sizeof command, "addr2line -ie '%s' %zx 2>/dev/null", info.dli_fname,
             (size_t)(pc - (uintptr_t)info.dli_fbase));
    std::string found;
    FILE* lines = popen(command, "r");
    char line[1024];
    while (lines && fgets(line, sizeof line, lines)) {
        const std::string text(line, strcspn(line, " \n"));
        const size_t at = text.rfind("kernels/");
        if (found.empty() && at != std::string::npos && text.find("cuda_cpu.h") == std::string::npos) found = text.substr(at);
    }
    if (lines) pclose(lines);
    return found.empty() ? unknown : found;
}

std::string of_thread(unsigned thread) {
    const unsigned x = g.block.x, y = g.block.y;
    return std::to_string(thread % x) + "," + std::to_string(thread / x % y) + "," + std::to_string(thread / (x * y));
}

[[noreturn]] void report(bool shared, const char* before, const Access& a, const char* now, uintptr_t pc) {
    const bool same = a.block == block_number;
    fail(std::string("race in ") + (shared ? "shared" : "global") + " memory: " + now + " at " + line_of(pc) + ", which " +
         (same ? "thread (" + of_thread(a.thread) + ")" : "another block") + " " + before + " at " + line_of(a.pc) +
         (same ? " with no barrier between" : ""));
}

void keep_read(Cell& cell, const Access& now, bool shared) {
    for (Access& r : cell.read)
        if (is_before(r, shared)) {
            r = now;
            return;
        }
    // Both are of other threads and not over. Of two in one warp one suffices to meet a write of another warp.
    auto warp = [](const Access& a) { return (uint64_t)a.block << 16 | a.thread / 32; };
    if (warp(cell.read[0]) == warp(cell.read[1]) && warp(now) != warp(cell.read[0])) cell.read[1] = now;
}

void access(uintptr_t at, size_t bytes, bool write, bool atomic, uintptr_t pc) {
    if (!g.cur || !is_watched(at)) return;
    const bool shared = is_shared(at);
    const Access now = {block_number, g.cur->clock.barriers, g.cur->clock.own, (uint16_t)g.cur->lin, atomic, pc};
    for (uintptr_t end = at + bytes; at < end;) {
        Page& page = page_of(at >> 12);
        const uintptr_t part = std::min(end, ((at >> 12) + 1) << 12) - at;
        unsigned wanted = page.shift;
        while ((at | part) & ((1u << wanted) - 1)) --wanted;
        if (wanted < page.shift) page.split(wanted);
        for (uintptr_t i = at; i < at + part; i += (uintptr_t)1 << page.shift) {
            Cell& cell = page.cells[(i & 4095) >> page.shift];
            if (cell.write.block && !(atomic && cell.write.atomic) && !is_before(cell.write, shared))
                report(shared, "writes", cell.write, write ? "a write" : "a read", pc);
            if (write) {
                for (const Access& r : cell.read)
                    if (r.block && !is_before(r, shared)) report(shared, "reads", r, "a write", pc);
                cell.write = now;
            } else {
                keep_read(cell, now, shared);
            }
        }
        at += part;
    }
}
}  // namespace

void races_launch(const void* shared, size_t bytes) {
    launch_first = block_number + 1;
    // What was before is over, so it may be forgotten.
    if (pages.size() > 2048) {
        pages.clear();
        for (auto& slot : recent) slot = {};
    }
    dynamic_begin = (uintptr_t)shared;
    dynamic_end = dynamic_begin + bytes;
}

void races_block() { ++block_number; }

void races_sync(Clock** lanes, uint32_t mask) {
    uint32_t seen[32] = {};
    for (int i = 0; i < 32; ++i)
        if (mask >> i & 1) {
            for (int l = 0; l < 32; ++l) seen[l] = std::max(seen[l], lanes[i]->seen[l]);
            seen[i] = std::max(seen[i], ++lanes[i]->own);
        }
    for (int i = 0; i < 32; ++i)
        if (mask >> i & 1) memcpy(lanes[i]->seen, seen, sizeof seen);
}

void races_atomic(const void* at, size_t bytes) {
    access((uintptr_t)at, bytes, true, true, (uintptr_t)__builtin_return_address(0) - 1);
}

void races_read(const void* at, size_t bytes, const void* pc) {
    access((uintptr_t)at, bytes, false, false, (uintptr_t)pc - 1);
}

void races_write(const void* at, size_t bytes, const void* pc) {
    access((uintptr_t)at, bytes, true, false, (uintptr_t)pc - 1);
}
}  // namespace cuda_cpu

// What the compiler calls.
#define CALLER ((uintptr_t)__builtin_return_address(0) - 1)
#define HOOKS(N)                                                                                                   \
    extern "C" void __tsan_read##N(void* p) { cuda_cpu::access((uintptr_t)p, N, false, false, CALLER); }            \
    extern "C" void __tsan_write##N(void* p) { cuda_cpu::access((uintptr_t)p, N, true, false, CALLER); }            \
    extern "C" void __tsan_unaligned_read##N(void* p) { cuda_cpu::access((uintptr_t)p, N, false, false, CALLER); }  \
    extern "C" void __tsan_unaligned_write##N(void* p) { cuda_cpu::access((uintptr_t)p, N, true, false, CALLER); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
extern "C" void __tsan_read_range(void* p, size_t n) { cuda_cpu::access((uintptr_t)p, n, false, false, CALLER); }
extern "C" void __tsan_write_range(void* p, size_t n) { cuda_cpu::access((uintptr_t)p, n, true, false, CALLER); }
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit(void*) {}
#endif
