// Which accesses of a kernel no barrier orders. Built with -fsanitize=thread the kernels call a function for each of their
// reads and writes; these are ours (no ThreadSanitizer behind them), because what orders CUDA threads is simple:
//   - __syncthreads orders everything before it in the block with everything behind it;
//   - __syncwarp does so for its lanes; shuffles, ballots and tensor-core products order nothing, as on a device;
//   - blocks of one launch are never ordered, launches always are.
// Two accesses of one byte that are not ordered, at least one of them a write, not both atomic, are a race: an error of the
// launch that names both lines. Each byte remembers its last write and two reads, so of many reads that race with a write
// some are named. Only one order of threads runs, but the answer does not depend on it where the branches taken do not.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace cuda_cpu {
// What a thread has behind it.
struct Clock {
    uint32_t barriers;  // block barriers passed
    uint32_t own;       // __syncwarp passed
    uint32_t seen[32];  // of every lane of its warp: the first of its intervals between __syncwarp that is not known to be over
};

#ifdef EMULATOR_RACES
// A launch begins; memory in [shared, shared + bytes) is dynamic shared memory.
void races_launch(const void* shared, size_t bytes);
// A block begins: nothing in shared memory is older.
void races_block();
// Lanes of one warp have met in a __syncwarp.
void races_sync(Clock** lanes, uint32_t mask);
// A read-modify-write of the device.
void races_atomic(const void* at, size_t bytes);
// Reads that a warp collective makes for its lane, and what copies of a thread read and write, at this place in the code.
void races_read(const void* at, size_t bytes, const void* pc);
void races_write(const void* at, size_t bytes, const void* pc);
#else
inline void races_launch(const void*, size_t) {}
inline void races_block() {}
inline void races_sync(Clock**, uint32_t) {}
inline void races_atomic(const void*, size_t) {}
inline void races_read(const void*, size_t, const void*) {}
inline void races_write(const void*, size_t, const void*) {}
#endif
}  // namespace cuda_cpu
