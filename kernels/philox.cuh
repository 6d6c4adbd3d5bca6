// Philox4x32-10 (Salmon et al. 2011), bit for bit as src/random/mod.rs:
//   key = [seed low, seed high], counter = [element / 4, draw, step low, step high], word = element % 4.
#pragma once
#include "elem.cuh"

// How far a replay is from where it was recorded; `counter` in src/cuda/replay.rs.
struct Advance {
    uint64_t step;
    uint32_t draw, pad;
};

// What Rust passes (`Draw` in src/cuda/launch.rs): seed, step and draw of a place in the sequence, and in recorded work where
// to read how far that has moved.
struct Philox {
    uint32_t seed[2], step[2], draw, pad;
    const Advance* advance;

    // The words of elements 4 index .. 4 index + 3.
    __device__ __forceinline__ uint4 words(uint32_t index) const {
        uint32_t c0 = index, c1 = draw, c2 = step[0], c3 = step[1], k0 = seed[0], k1 = seed[1];
        if (advance) {
            const uint64_t moved = ((uint64_t)c3 << 32 | c2) + advance->step;
            c1 += advance->draw, c2 = (uint32_t)moved, c3 = (uint32_t)(moved >> 32);
        }
#pragma unroll
        for (int round = 0; round < 10; ++round) {
            uint32_t high = __umulhi(0xD2511F53u, c0), low = 0xD2511F53u * c0;
            uint32_t high2 = __umulhi(0xCD9E8D57u, c2), low2 = 0xCD9E8D57u * c2;
            c0 = high2 ^ c1 ^ k0, c1 = low2, c2 = high ^ c3 ^ k1, c3 = low;
            k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
        }
        return make_uint4(c0, c1, c2, c3);
    }

    // The word of one element.
    __device__ __forceinline__ uint32_t word(int64_t element) const {
        const uint4 w = words((uint32_t)(element / 4));
        const int part = (int)(element % 4);
        return part == 0 ? w.x : part == 1 ? w.y : part == 2 ? w.z : w.w;
    }
};

// w / 2^32 cut to BITS bits, in [0, 1): 24 for f32, 11 for f16, 8 for bf16.
template <int BITS>
__device__ __forceinline__ float uniform(uint32_t w) {
    return (float)(int)(w >> (32 - BITS)) * (1.f / (float)(1u << BITS));
}

// The middle of the cell of w / 2^32, in (0, 1).
template <int BITS>
__device__ __forceinline__ float uniform_open(uint32_t w) {
    return ((float)(int)(w >> (33 - BITS)) + 0.5f) * (2.f / (float)(1u << BITS));
}

template <class T>
struct RandomBits;
template <>
struct RandomBits<float> {
    static constexpr int BITS = 24;
};
template <>
struct RandomBits<f16> {
    static constexpr int BITS = 11;
};
template <>
struct RandomBits<bf16> {
    static constexpr int BITS = 8;
};
