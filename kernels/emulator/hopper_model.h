// A model of what kernels/hopper.cuh wraps, by the words of the PTX ISA: every CUDA thread is a thread of the host, copies are
// done at once, a product is calculated by each thread for its own part of the sums. It shows wrong coordinates, descriptors,
// phases and counts of arrivals; it knows nothing of proxies, of work in flight, or of how fast anything is.
#pragma once
#include <barrier>
#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include "elem.cuh"

namespace hopper_model {
struct Barrier {
    uint32_t count, pending;
    int64_t bytes;
    uint32_t phase;
};
// A tensor of three dims and the lines of a box, in place of what the driver encodes.
struct Map {
    const uint16_t* data;
    int64_t dims[3];
    uint32_t lines;
};
// A block. Shared memory starts at an address that no swizzle atom does.
struct Block {
    static constexpr uint32_t FIRST = 0x180;
    alignas(1024) unsigned char shared[227 * 1024];
    std::mutex lock;
    std::condition_variable over;
    std::map<uint32_t, Barrier> barriers;
    std::barrier<> all{384}, consumers{256}, groups[2] = {std::barrier<>(128), std::barrier<>(128)};
    std::unique_ptr<std::barrier<>> warps[12];
};
extern Block* block;
extern thread_local uint3 thread_number;
extern uint3 block_number;
[[noreturn]] void wrong(const char* what);

inline void ended(Barrier& b) {
    if (b.pending > 0 || b.bytes > 0) return;
    b.phase ^= 1;
    b.pending = b.count;
    block->over.notify_all();
}
inline void arrival(uint32_t at, uint32_t bytes) {
    std::lock_guard guard(block->lock);
    Barrier& b = block->barriers.at(at);
    if (b.pending == 0) wrong("more arrivals than a phase has");
    b.bytes += bytes;
    --b.pending;
    ended(b);
}
// Swizzle of 128 bytes: bits 4-6 of an address by bits 7-9.
inline unsigned char* swizzled(uint32_t at) {
    at ^= (at >> 7 & 7) << 4;
    if (at + 2 > sizeof block->shared) wrong("outside of shared memory");
    return block->shared + at;
}
// Element (row, k) of an operand, along rows or along k.
template <class T>
float element(uint64_t descriptor, bool along_rows, uint32_t row, uint32_t k) {
    if (descriptor >> 62 != 1) wrong("not the swizzle of 128 bytes");
    const auto field = [=](int bit) { return (uint32_t)(descriptor >> bit & 0x3fff) << 4; };
    const uint32_t start = field(0), leading = field(16), stride = field(32);
    T value;
    memcpy(&value,
           swizzled(along_rows ? start + row / 64 * leading + row % 64 * 2 + k / 8 * stride + k % 8 * 128
                               : start + row / 8 * stride + row % 8 * 128 + k * 2),
           2);
    return load(value);
}
}  // namespace hopper_model

inline uint32_t in_shared(const void* p) { return (uint32_t)((const unsigned char*)p - hopper_model::block->shared); }
inline void barrier_init(uint32_t barrier, uint32_t count) { hopper_model::block->barriers[barrier] = {count, count, 0, 0}; }
inline void barriers_ready() {}
inline void arrive(uint32_t barrier) { hopper_model::arrival(barrier, 0); }
inline void arrive_expecting(uint32_t barrier, uint32_t bytes) { hopper_model::arrival(barrier, bytes); }
inline void wait(uint32_t barrier, uint32_t parity) {
    std::unique_lock guard(hopper_model::block->lock);
    const auto& b = hopper_model::block->barriers.at(barrier);
    if (!hopper_model::block->over.wait_for(guard, std::chrono::seconds(20), [&] { return b.phase != parity; }))
        hopper_model::wrong("a wait without end");
}
template <class TensorMap>
void load_box(uint32_t to, const TensorMap* map, int x, int y, int z, uint32_t barrier) {
    hopper_model::Map m;
    memcpy(&m, map, sizeof m);
    if (to % 1024) hopper_model::wrong("a box that does not start at a swizzle atom");
    for (uint32_t i = 0; i < m.lines; ++i)
        for (uint32_t j = 0; j < 64; ++j) {
            const int64_t at[3] = {x + j, y + i, z};
            const bool inside = at[0] < m.dims[0] && at[1] < m.dims[1] && at[2] < m.dims[2];
            const uint16_t value = inside ? m.data[(at[2] * m.dims[1] + at[1]) * m.dims[0] + at[0]] : 0;
            memcpy(hopper_model::swizzled(to + i * 128 + j * 2), &value, 2);
        }
    std::lock_guard guard(hopper_model::block->lock);
    hopper_model::Barrier& b = hopper_model::block->barriers.at(barrier);
    b.bytes -= m.lines * 128;
    hopper_model::ended(b);
}
template <int ROWS_A, int ROWS_B, class T>
void wgmma(float (&d)[128], uint64_t a, uint64_t b, T) {
    const uint32_t t = hopper_model::thread_number.x % 128, row = t / 32 * 16 + t % 32 / 4, column = t % 4 * 2;
    for (uint32_t i = 0; i < 128; ++i) {
        double sum = d[i];
        for (uint32_t k = 0; k < 16; ++k)
            sum += (double)hopper_model::element<T>(a, ROWS_A, row + i / 2 % 2 * 8, k) *
                   hopper_model::element<T>(b, ROWS_B, i / 4 * 8 + column + i % 2, k);
        d[i] = (float)sum;
    }
}
inline void wgmma_fence() {}
inline void wgmma_commit() {}
// The lanes of a warp are one on a device.
template <int PENDING>
void wgmma_wait() {
    hopper_model::block->warps[hopper_model::thread_number.x / 32]->arrive_and_wait();
}
inline void meet(int id, int threads) {
    if (id == 1 && threads == 256) hopper_model::block->consumers.arrive_and_wait();
    else if ((id == 2 || id == 3) && threads == 128) hopper_model::block->groups[id - 2].arrive_and_wait();
    else hopper_model::wrong("a barrier that nobody else knows");
}
