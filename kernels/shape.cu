// Moves of elements, whatever their type: permute, broadcast, narrow, pad, concat and flip are one strided
// copy; fill. The host takes the widest element (up to 16 bytes) in which all sizes and steps are whole.
// Bytes: one read, one write per element; no flops. Bound: memory (by the side whose innermost step is not 1).
#include "elem.cuh"

// Sizes outermost first; steps of both sides in elements. A step of 0 repeats, a negative one runs backwards.
struct Strided {
    uint32_t rank, size[6];
    int32_t to[6], from[6];
};

template <class T>
__device__ void move(T* y, const T* x, int64_t y_start, int64_t x_start, uint32_t n, const Strided& d) {
    int64_t at = global_thread();
    if (at >= n) return;
    uint32_t rest = (uint32_t)at;
    for (int i = (int)d.rank - 1; i >= 0; --i) {
        uint32_t k = rest % d.size[i];
        rest /= d.size[i];
        y_start += (int64_t)k * d.to[i];
        x_start += (int64_t)k * d.from[i];
    }
    y[y_start] = x[x_start];
}

template <class T>
__device__ void fill(T* y, int64_t n, T value) {
    int64_t at = global_thread();
    if (at < n) y[at] = value;
}

extern "C" __global__ void move_1(uint8_t* y, const uint8_t* x, int64_t y_start, int64_t x_start, uint32_t n,
                                  Strided d) {
    move(y, x, y_start, x_start, n, d);
}
extern "C" __global__ void move_2(uint16_t* y, const uint16_t* x, int64_t y_start, int64_t x_start,
                                  uint32_t n, Strided d) {
    move(y, x, y_start, x_start, n, d);
}
extern "C" __global__ void move_4(uint32_t* y, const uint32_t* x, int64_t y_start, int64_t x_start,
                                  uint32_t n, Strided d) {
    move(y, x, y_start, x_start, n, d);
}
extern "C" __global__ void move_16(uint4* y, const uint4* x, int64_t y_start, int64_t x_start, uint32_t n,
                                   Strided d) {
    move(y, x, y_start, x_start, n, d);
}
extern "C" __global__ void fill_1(uint8_t* y, int64_t n, uint32_t value) { fill(y, n, (uint8_t)value); }
extern "C" __global__ void fill_2(uint16_t* y, int64_t n, uint32_t value) { fill(y, n, (uint16_t)value); }
extern "C" __global__ void fill_4(uint32_t* y, int64_t n, uint32_t value) { fill(y, n, value); }
