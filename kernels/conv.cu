// Convolution over an explicit list of taps, channels last, as implicit matrix products; masked kernels list
// fewer taps. x (B, H, W, Cin), w (taps, Cin, Cout), y (B, OH, OW, Cout): y[b, oy, ox] = sum_t x[b, oy s +
// dy_t, ox s + dx_t] w[t]. Bytes: x, w and y once (neighbouring taps hit the cache); flops: 2 B OH OW taps
// Cin Cout. Bound: tensor cores for bf16, f16 and tf32 (SASS: HMMA), FMA for f32.
//
// bf16 and f16 with channels in eights take the tiles of wide.cuh: 16 bytes of a patch lie under one tap.
#include "gemm.cuh"
#include "wide.cuh"

struct Geometry {
    int batch, h, w, cin, oh, ow, cout, stride, taps, act;
    int8_t dy[64], dx[64];
};

// y = act(x * w + bias + residual): rows are output pixels, k is (tap, input channel).
template <class Kind, class T>
__device__ void forward(T* y, const T* x, const T* w, const T* bias, const T* residual, const Geometry& g) {
    int64_t m = (int64_t)g.batch * g.oh * g.ow, k_total = (int64_t)g.taps * g.cin;
    auto patch = [&](int64_t i, int64_t k) {
        int tap = (int)(k / g.cin), c = (int)(k % g.cin);
        int b = (int)(i / (g.oh * g.ow)), p = (int)(i % (g.oh * g.ow));
        int py = p / g.ow * g.stride + g.dy[tap], px = p % g.ow * g.stride + g.dx[tap];
        bool inside = i < m && py >= 0 && py < g.h && px >= 0 && px < g.w;
        return inside ? x[(((int64_t)b * g.h + py) * g.w + px) * g.cin + c] : store<T>(0.f);
    };
    auto weight = [&](int64_t k, int64_t j) { return j < g.cout ? w[k * g.cout + j] : store<T>(0.f); };
    auto sink = [&](int64_t i, int64_t j, float v) {
        if (i >= m || j >= g.cout) return;
        if (bias) v += load(bias[j]);
        if (residual) v += load(residual[i * g.cout + j]);
        y[i * g.cout + j] = store<T>(activate(g.act, v));
    };
    gemm_tile(Kind(), (int64_t)blockIdx.x * TILE, (int64_t)blockIdx.y * TILE, 0, k_total, patch, weight, sink);
}

// dx: rows are input pixels, k is (tap, output channel); zero where `gate` (shaped as x) is not positive.
template <class Kind, class T>
__device__ void input_grad(T* dx, const T* dy, const T* w, const T* gate, const Geometry& g) {
    int64_t m = (int64_t)g.batch * g.h * g.w, k_total = (int64_t)g.taps * g.cout;
    auto patch = [&](int64_t i, int64_t k) {
        int tap = (int)(k / g.cout), c = (int)(k % g.cout);
        int b = (int)(i / (g.h * g.w)), p = (int)(i % (g.h * g.w));
        int py = p / g.w - g.dy[tap], px = p % g.w - g.dx[tap];
        bool whole = py >= 0 && px >= 0 && py % g.stride == 0 && px % g.stride == 0;
        py /= g.stride, px /= g.stride;
        bool inside = i < m && whole && py < g.oh && px < g.ow;
        return inside ? dy[(((int64_t)b * g.oh + py) * g.ow + px) * g.cout + c] : store<T>(0.f);
    };
    auto weight = [&](int64_t k, int64_t j) {
        int tap = (int)(k / g.cout), c = (int)(k % g.cout);
        return j < g.cin ? w[((int64_t)tap * g.cin + j) * g.cout + c] : store<T>(0.f);
    };
    auto sink = [&](int64_t i, int64_t j, float v) {
        if (i >= m || j >= g.cin) return;
        dx[i * g.cin + j] = store<T>(gate && !(load(gate[i * g.cin + j]) > 0.f) ? 0.f : v);
    };
    gemm_tile(Kind(), (int64_t)blockIdx.x * TILE, (int64_t)blockIdx.y * TILE, 0, k_total, patch, weight, sink);
}

// dw (parts, taps, Cin, Cout) in f32: rows are (tap, input channel), k is the output pixels of part
// blockIdx.z.
template <class Kind, class T>
__device__ void weight_grad(float* dw, const T* x, const T* dy, int64_t length, const Geometry& g) {
    int64_t m = (int64_t)g.taps * g.cin, pixels = (int64_t)g.batch * g.oh * g.ow;
    int64_t first = blockIdx.z * length, last = first + length < pixels ? first + length : pixels;
    auto patch = [&](int64_t i, int64_t k) {
        if (i >= m) return store<T>(0.f);
        int tap = (int)(i / g.cin), c = (int)(i % g.cin);
        int b = (int)(k / (g.oh * g.ow)), p = (int)(k % (g.oh * g.ow));
        int py = p / g.ow * g.stride + g.dy[tap], px = p % g.ow * g.stride + g.dx[tap];
        bool inside = py >= 0 && py < g.h && px >= 0 && px < g.w;
        return inside ? x[(((int64_t)b * g.h + py) * g.w + px) * g.cin + c] : store<T>(0.f);
    };
    auto grad = [&](int64_t k, int64_t j) { return j < g.cout ? dy[k * g.cout + j] : store<T>(0.f); };
    auto sink = [&](int64_t i, int64_t j, float v) {
        if (i < m && j < g.cout) dw[(blockIdx.z * m + i) * g.cout + j] = v;
    };
    gemm_tile(Kind(), (int64_t)blockIdx.x * TILE, (int64_t)blockIdx.y * TILE, first, last, patch, grad, sink);
}

// The sources of wide.cuh. A pixel of an image of `rows` by `columns`, in two registers; outside there are zeros.
struct Pixel {
    int image;
    int16_t y, x;

    static __device__ __forceinline__ Pixel of(int64_t number, int64_t end, int rows, int columns, int stride) {
        // As far outside as no tap reaches.
        if (number >= end) return {0, -30000, 0};
        const int image = (int)(number / (rows * columns)), rest = (int)(number % (rows * columns));
        return {image, (int16_t)(rest / columns * stride), (int16_t)(rest % columns * stride)};
    }
};

// Channels of the pixel of x under a tap: rows are output pixels, k is (tap, channel).
template <class T>
struct Patches {
    static constexpr Neighbours ORDER = ALONG_K;
    using Place = Pixel;
    const T* data;
    const Geometry& g;
    int64_t pixels;

    __device__ __forceinline__ Pixel place(int64_t row) const { return Pixel::of(row, pixels, g.oh, g.ow, g.stride); }
    __device__ __forceinline__ const T* at(const Pixel& p, int k) const {
        const unsigned tap = (unsigned)k / (unsigned)g.cin;
        const int c = k - (int)tap * g.cin, y = p.y + g.dy[tap], x = p.x + g.dx[tap];
        const bool inside = y >= 0 && y < g.h && x >= 0 && x < g.w;
        return inside ? data + (((int64_t)p.image * g.h + y) * g.w + x) * g.cin + c : nullptr;
    }
};

// The same for dx: rows are input pixels, k is (tap, output channel).
template <class T>
struct Spread {
    static constexpr Neighbours ORDER = ALONG_K;
    using Place = Pixel;
    const T* data;
    const Geometry& g;
    int64_t pixels;

    __device__ __forceinline__ Pixel place(int64_t row) const { return Pixel::of(row, pixels, g.h, g.w, 1); }
    __device__ __forceinline__ const T* at(const Pixel& p, int k) const {
        const unsigned tap = (unsigned)k / (unsigned)g.cout;
        const int c = k - (int)tap * g.cout;
        int y = p.y - g.dy[tap], x = p.x - g.dx[tap];
        if (y < 0 || x < 0) return nullptr;
        if (g.stride > 1) {
            if (y % g.stride || x % g.stride) return nullptr;
            y /= g.stride, x /= g.stride;
        }
        return y < g.oh && x < g.ow ? data + (((int64_t)p.image * g.oh + y) * g.ow + x) * g.cout + c : nullptr;
    }
};

// w as the B of dx: columns are input channels, k is (tap, output channel).
template <class T>
struct Weights {
    static constexpr Neighbours ORDER = ALONG_K;
    using Place = int;
    const T* data;
    const Geometry& g;

    __device__ __forceinline__ int place(int64_t column) const { return column < g.cin ? (int)column : -1; }
    __device__ __forceinline__ const T* at(int channel, int k) const {
        const unsigned tap = (unsigned)k / (unsigned)g.cout;
        const int c = k - (int)tap * g.cout;
        return channel < 0 ? nullptr : data + ((int64_t)tap * g.cin + channel) * g.cout + c;
    }
};

// x as the A of dw: rows are (tap, input channel), k is output pixels.
template <class T>
struct Taps {
    static constexpr Neighbours ORDER = ALONG_ROWS;
    struct Place {
        int tap, channel;
    };
    const T* data;
    const Geometry& g;

    __device__ __forceinline__ Place place(int64_t row) const {
        if (row >= (int64_t)g.taps * g.cin) return {-1, 0};
        return {(int)row / g.cin, (int)row % g.cin};
    }
    __device__ __forceinline__ const T* at(const Place& from, int k) const {
        if (from.tap < 0) return nullptr;
        const unsigned image = (unsigned)k / (unsigned)(g.oh * g.ow), rest = (unsigned)k % (unsigned)(g.oh * g.ow);
        const int y = (int)(rest / (unsigned)g.ow) * g.stride + g.dy[from.tap];
        const int x = (int)(rest % (unsigned)g.ow) * g.stride + g.dx[from.tap];
        const bool inside = y >= 0 && y < g.h && x >= 0 && x < g.w;
        return inside ? data + (((int64_t)image * g.h + y) * g.w + x) * g.cin + from.channel : nullptr;
    }
};

template <template <class> class Tile, class T>
__device__ __forceinline__ void wide_forward(T* y, const T* x, const T* w, const T* bias, const T* residual, const Geometry& g) {
    DYN_SHARED(T, shared);
    const int64_t m = (int64_t)g.batch * g.oh * g.ow;
    const int k = g.taps * g.cin;
    Tile<T> tile(shared, m, g.cout);
    tile.run(Patches<T>{x, g, m}, Matrix<T, ALONG_ROWS>{w, g.cout, g.cout}, 0, k);
    tile.put(m, g.cout, [&](int64_t i, int64_t j, const Vec<float, 8>& sums) {
        const Vec<float, 8> b = bias ? widened(bias + j) : Vec<float, 8>{};
        Vec<float, 8> v = residual ? widened(residual + i * g.cout + j) : Vec<float, 8>{};
#pragma unroll
        for (int q = 0; q < 8; ++q) v.v[q] = activate(g.act, sums.v[q] + b.v[q] + v.v[q]);
        store_rounded(y + i * g.cout + j, v);
    });
}

template <template <class> class Tile, class T>
__device__ __forceinline__ void wide_input_grad(T* dx, const T* dy, const T* w, const T* gate, const Geometry& g) {
    DYN_SHARED(T, shared);
    const int64_t m = (int64_t)g.batch * g.h * g.w;
    Tile<T> tile(shared, m, g.cin);
    tile.run(Spread<T>{dy, g, m}, Weights<T>{w, g}, 0, g.taps * g.cout);
    tile.put(m, g.cin, [&](int64_t i, int64_t j, const Vec<float, 8>& sums) {
        Vec<float, 8> v = sums;
        if (gate) {
            const Vec<float, 8> open = widened(gate + i * g.cin + j);
#pragma unroll
            for (int q = 0; q < 8; ++q) v.v[q] = open.v[q] > 0.f ? v.v[q] : 0.f;
        }
        store_rounded(dx + i * g.cin + j, v);
    });
}

template <template <class> class Tile, class T>
__device__ __forceinline__ void wide_weight_grad(float* dw, const T* x, const T* dy, int64_t length, const Geometry& g) {
    DYN_SHARED(T, shared);
    const int64_t m = (int64_t)g.taps * g.cin, pixels = (int64_t)g.batch * g.oh * g.ow;
    const int64_t first = blockIdx.z * length, last = first + length < pixels ? first + length : pixels;
    Tile<T> tile(shared, m, g.cout);
    tile.run(Taps<T>{x, g}, Matrix<T, ALONG_ROWS>{dy, g.cout, g.cout}, (int)first, (int)last);
    tile.put(m, g.cout, [&](int64_t i, int64_t j, const Vec<float, 8>& sums) {
        float* to = dw + (blockIdx.z * m + i) * g.cout + j;
#pragma unroll
        for (int q = 0; q < 8; q += 4)
            store_vec<4>(to + q, Vec<float, 4>{{sums.v[q], sums.v[q + 1], sums.v[q + 2], sums.v[q + 3]}});
    });
}

extern "C" __global__ void __launch_bounds__(128)
    conv_f32(float* y, const float* x, const float* w, const float* bias, const float* residual, Geometry g) {
    forward<float>(y, x, w, bias, residual, g);
}
extern "C" __global__ void __launch_bounds__(128)
    conv_tf32(float* y, const float* x, const float* w, const float* bias, const float* residual, Geometry g) {
    forward<tf32>(y, x, w, bias, residual, g);
}
extern "C" __global__ void __launch_bounds__(128)
    conv_bf16(bf16* y, const bf16* x, const bf16* w, const bf16* bias, const bf16* residual, Geometry g) {
    forward<bf16>(y, x, w, bias, residual, g);
}
extern "C" __global__ void __launch_bounds__(128)
    conv_f16(f16* y, const f16* x, const f16* w, const f16* bias, const f16* residual, Geometry g) {
    forward<f16>(y, x, w, bias, residual, g);
}
extern "C" __global__ void __launch_bounds__(128)
    conv_input_grad_f32(float* dx, const float* dy, const float* w, const float* gate, Geometry g) {
    input_grad<float>(dx, dy, w, gate, g);
}
extern "C" __global__ void __launch_bounds__(128)
    conv_input_grad_tf32(float* dx, const float* dy, const float* w, const float* gate, Geometry g) {
    input_grad<tf32>(dx, dy, w, gate, g);
}
extern "C" __global__ void __launch_bounds__(128)
    conv_input_grad_bf16(bf16* dx, const bf16* dy, const bf16* w, const bf16* gate, Geometry g) {
    input_grad<bf16>(dx, dy, w, gate, g);
}
extern "C" __global__ void __launch_bounds__(128)
    conv_input_grad_f16(f16* dx, const f16* dy, const f16* w, const f16* gate, Geometry g) {
    input_grad<f16>(dx, dy, w, gate, g);
}
extern "C" __global__ void __launch_bounds__(128)
    conv_weight_grad_f32(float* dw, const float* x, const float* dy, int64_t length, Geometry g) {
    weight_grad<float>(dw, x, dy, length, g);
}
extern "C" __global__ void __launch_bounds__(128)
    conv_weight_grad_tf32(float* dw, const float* x, const float* dy, int64_t length, Geometry g) {
    weight_grad<tf32>(dw, x, dy, length, g);
}
extern "C" __global__ void __launch_bounds__(128)
    conv_weight_grad_bf16(float* dw, const bf16* x, const bf16* dy, int64_t length, Geometry g) {
    weight_grad<bf16>(dw, x, dy, length, g);
}
extern "C" __global__ void __launch_bounds__(128)
    conv_weight_grad_f16(float* dw, const f16* x, const f16* dy, int64_t length, Geometry g) {
    weight_grad<f16>(dw, x, dy, length, g);
}
extern "C" __global__ void __launch_bounds__(256)
    conv_128x128_bf16(bf16* y, const bf16* x, const bf16* w, const bf16* bias, const bf16* residual, Geometry g) {
    wide_forward<Gather128x128>(y, x, w, bias, residual, g);
}
extern "C" __global__ void __launch_bounds__(256)
    conv_128x128_f16(f16* y, const f16* x, const f16* w, const f16* bias, const f16* residual, Geometry g) {
    wide_forward<Gather128x128>(y, x, w, bias, residual, g);
}
extern "C" __global__ void __launch_bounds__(128, 4)
    conv_64x64_bf16(bf16* y, const bf16* x, const bf16* w, const bf16* bias, const bf16* residual, Geometry g) {
    wide_forward<Tile64x64>(y, x, w, bias, residual, g);
}
extern "C" __global__ void __launch_bounds__(128, 4)
    conv_64x64_f16(f16* y, const f16* x, const f16* w, const f16* bias, const f16* residual, Geometry g) {
    wide_forward<Tile64x64>(y, x, w, bias, residual, g);
}
extern "C" __global__ void __launch_bounds__(256)
    conv_input_grad_128x128_bf16(bf16* dx, const bf16* dy, const bf16* w, const bf16* gate, Geometry g) {
    wide_input_grad<Gather128x128>(dx, dy, w, gate, g);
}
extern "C" __global__ void __launch_bounds__(256)
    conv_input_grad_128x128_f16(f16* dx, const f16* dy, const f16* w, const f16* gate, Geometry g) {
    wide_input_grad<Gather128x128>(dx, dy, w, gate, g);
}
extern "C" __global__ void __launch_bounds__(128, 4)
    conv_input_grad_64x64_bf16(bf16* dx, const bf16* dy, const bf16* w, const bf16* gate, Geometry g) {
    wide_input_grad<Tile64x64>(dx, dy, w, gate, g);
}
extern "C" __global__ void __launch_bounds__(128, 4)
    conv_input_grad_64x64_f16(f16* dx, const f16* dy, const f16* w, const f16* gate, Geometry g) {
    wide_input_grad<Tile64x64>(dx, dy, w, gate, g);
}
extern "C" __global__ void __launch_bounds__(256)
    conv_weight_grad_128x128_bf16(float* dw, const bf16* x, const bf16* dy, int64_t length, Geometry g) {
    wide_weight_grad<Gather128x128>(dw, x, dy, length, g);
}
extern "C" __global__ void __launch_bounds__(256)
    conv_weight_grad_128x128_f16(float* dw, const f16* x, const f16* dy, int64_t length, Geometry g) {
    wide_weight_grad<Gather128x128>(dw, x, dy, length, g);
}
extern "C" __global__ void __launch_bounds__(128, 4)
    conv_weight_grad_64x64_bf16(float* dw, const bf16* x, const bf16* dy, int64_t length, Geometry g) {
    wide_weight_grad<Tile64x64>(dw, x, dy, length, g);
}
extern "C" __global__ void __launch_bounds__(128, 4)
    conv_weight_grad_64x64_f16(float* dw, const f16* x, const f16* dy, int64_t length, Geometry g) {
    wide_weight_grad<Tile64x64>(dw, x, dy, length, g);
}
