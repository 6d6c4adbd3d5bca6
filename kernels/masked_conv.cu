// Masked convolution (src/ops/masked_conv.rs) as a matrix product over the kept taps: forward, input and weight gradient.
//
// y[p, o] = act(Σ_{t, c} x[p + tap t, c] w[t, c, o] + bias[o] + residual[p, o]) over the pixels p of x (B, H, W, Cin). The
// kept taps are a prefix of the K x K kernel, so masked taps cost nothing. Where colours split the channels, the
// centre tap comes last and a block multiplies only the channel groups that its outputs (or inputs) can see; inside the
// boundary groups single weights are zeroed on their way into shared memory. Patches are gathered while they
// are staged, never stored.
//
// Flops: 2 pixels taps Cin Cout for each of the three products. Bytes: e pixels (Cin + Cout), the taps of a patch being
// read from L1 and L2. bf16 and f16 on the tensor cores, f32 on the FMA units. Bound, 3 x 3 kind B at C = 32 in bf16:
// 80 flops per byte, memory on an H100 (ridge about 300), so mma.sync suffices and wgmma would not help; from C of
// about 128 on the tensor cores; f32 is bound by the FMA units from C of 8 on.
// SASS: HMMA in masked_conv_forward, masked_conv_input_grad, masked_conv_weight_grad
//
// `masked_conv_act_grad_*` passes the gradient through the activation and sums the bias gradient, in one pass of 3 e
// bytes per element. The weight gradient is summed over `splits` ranges of pixels and added in order by `masked_conv_finish_*`.
#include "columns.cuh"
#include "tile.cuh"

namespace {

// What src/ops/masked_conv.rs passes.
struct Geometry {
    int batch, height, width, cin, cout;
    int kernel;   // side K
    int whole;    // taps that are kept for all channels
    int partial;  // 1 when one more tap, the centre, is kept in part
    int colours;  // groups of channels
    int strict;   // 1 when a group does not see itself (kind A)

    __device__ int pixels() const { return batch * height * width; }
    __device__ int taps() const { return whole + partial; }
    // Whether output o sees input c at a tap.
    __device__ __forceinline__ bool sees(int tap, int c, int o) const {
        if (tap < whole) return true;
        const int from = c / (cin / colours), to = o / (cout / colours);
        return strict ? from < to : from <= to;
    }
};

enum Act { NONE, RELU, SIGMOID, TANH, SILU };

__device__ __forceinline__ float activate(int act, float x) {
    switch (act) {
        case RELU: return x > 0.f || x != x ? x : 0.f;
        case SIGMOID: return sigmoid(x);
        case TANH: return tanhf(x);
        case SILU: return x * sigmoid(x);
        default: return x;
    }
}

// A pixel's row in a (B, H, W) image batch.
struct Pixel {
    int i, j;
    bool valid;
    __device__ __forceinline__ Pixel(const Geometry& g, int p) : valid(p < g.pixels()) {
        const int q = p / g.width;
        j = p - q * g.width;
        i = q - q / g.height * g.height;
    }
};

// V channels from `c` on of the pixel that `tap` reads at p, of `x` with `channels`; sign -1 reads against the tap.
template <int V, class T>
__device__ __forceinline__ Vec<T, V> patch(const Geometry& g, const T* x, int channels, int p, int tap, int c, int sign) {
    const Pixel at(g, p);
    const int u = tap / g.kernel, dy = sign * (u - g.kernel / 2), dx = sign * (tap - u * g.kernel - g.kernel / 2);
    if (!at.valid || (unsigned)(at.i + dy) >= (unsigned)g.height || (unsigned)(at.j + dx) >= (unsigned)g.width)
        return zero_vec<V, T>();
    return load_vec<V>(x + (int64_t)(p + dy * g.width + dx) * channels + c);
}

template <class T>
__device__ __forceinline__ void store_pair(T* to, int col, int cols, float v0, float v1) {
    if (cols % 2 == 0) {
        if (col < cols) store_vec<2>(to + col, Vec<T, 2>{{store<T>(v0), store<T>(v1)}});
    } else {
        if (col < cols) to[col] = store<T>(v0);
        if (col + 1 < cols) to[col + 1] = store<T>(v1);
    }
}

// A tile of pixels by N outputs.
template <class Kind, int N, int V, class T>
__device__ void forward(T* y, const T* x, const T* w, const T* bias, const T* residual, int act, Geometry g) {
    using Product = Tile<T, N, ALONG_K, ALONG_ROWS, V, V, Kind>;
    DYN_SHARED(unsigned char, memory);
    Product product(memory);
    const int p0 = blockIdx.x * Product::M, o0 = blockIdx.y * N, whole = g.whole * g.cin;
    // Of the centre, the channels that the last output of this tile sees.
    const int last = min(o0 + N, g.cout) - 1, groups = last / (g.cout / g.colours) + 1 - g.strict;
    const int end = whole + g.partial * groups * (g.cin / g.colours);
    auto patches = [&](int row, int k) {
        if (k >= end) return zero_vec<V, T>();
        const int tap = k / g.cin;
        return patch<V>(g, x, g.cin, p0 + row, tap, k - tap * g.cin, 1);
    };
    auto weights = [&](int col, int k) {
        const int o = o0 + col;
        if (k >= end || o >= g.cout) return zero_vec<V, T>();
        Vec<T, V> v = load_vec<V>(w + (int64_t)k * g.cout + o);
        if (k >= whole) {
#pragma unroll
            for (int i = 0; i < V; ++i)
                if (!g.sees(g.whole, k - whole, o + i)) v.v[i] = store<T>(0.f);
        }
        return v;
    };
    product.run(patches, weights, 0, end);
    product.each_pair([&](int row, int col, float v0, float v1) {
        const int p = p0 + row, o = o0 + col;
        if (p >= g.pixels() || o >= g.cout) return;
        const int64_t at = (int64_t)p * g.cout;
        const bool second = o + 1 < g.cout;
        if (bias) v0 += load(bias[o]), v1 += second ? load(bias[o + 1]) : 0.f;
        if (residual) v0 += load(residual[at + o]), v1 += second ? load(residual[at + o + 1]) : 0.f;
        store_pair(y + at, o, g.cout, activate(act, v0), activate(act, v1));
    });
}

// dx[p, c] = Σ_{t, o} dy[p - tap t, o] w[t, c, o], then 0 where gate[p, c] <= 0: a tile of pixels by N inputs.
template <class Kind, int N, int V, class T>
__device__ void input_grad(T* dx, const T* dy, const T* w, const T* gate, Geometry g) {
    using Product = Tile<T, N, ALONG_K, ALONG_K, V, V, Kind>;
    DYN_SHARED(unsigned char, memory);
    Product product(memory);
    const int p0 = blockIdx.x * Product::M, c0 = blockIdx.y * N, whole = g.whole * g.cout;
    // Of the centre, the outputs that see the first input of this tile.
    const int low = (c0 / (g.cin / g.colours) + g.strict) * (g.cout / g.colours) / V * V;
    const int end = whole + g.partial * max(g.cout - low, 0);
    auto output = [&](int k, int& tap) {
        tap = min(k / g.cout, g.whole);
        return k - tap * g.cout + (tap == g.whole ? low : 0);
    };
    auto patches = [&](int row, int k) {
        if (k >= end) return zero_vec<V, T>();
        int tap;
        const int o = output(k, tap);
        return patch<V>(g, dy, g.cout, p0 + row, tap, o, -1);
    };
    auto weights = [&](int col, int k) {
        const int c = c0 + col;
        if (k >= end || c >= g.cin) return zero_vec<V, T>();
        int tap;
        const int o = output(k, tap);
        Vec<T, V> v = load_vec<V>(w + ((int64_t)tap * g.cin + c) * g.cout + o);
        if (tap == g.whole) {
#pragma unroll
            for (int i = 0; i < V; ++i)
                if (!g.sees(tap, c, o + i)) v.v[i] = store<T>(0.f);
        }
        return v;
    };
    product.run(patches, weights, 0, end);
    product.each_pair([&](int row, int col, float v0, float v1) {
        const int p = p0 + row, c = c0 + col;
        if (p >= g.pixels() || c >= g.cin) return;
        const int64_t at = (int64_t)p * g.cin;
        if (gate) {
            if (!(load(gate[at + c]) > 0.f)) v0 = 0.f;
            if (c + 1 < g.cin && !(load(gate[at + c + 1]) > 0.f)) v1 = 0.f;
        }
        store_pair(dx + at, c, g.cin, v0, v1);
    });
}

// Σ x[p + tap t, c] dy[p, o] over the pixels of split blockIdx.z, into partial (splits, taps Cin, Cout): a tile of
// (tap, input) rows by N outputs.
template <class Kind, int N, int V, class T>
__device__ void weight_grad(float* partial, const T* x, const T* dy, Geometry g) {
    using Product = Tile<T, N, ALONG_ROWS, ALONG_ROWS, V, V, Kind>;
    DYN_SHARED(unsigned char, memory);
    Product product(memory);
    const int m0 = blockIdx.x * Product::M, o0 = blockIdx.y * N, rows = g.taps() * g.cin, pixels = g.pixels();
    const int chunk = ((pixels + gridDim.z - 1) / gridDim.z + Product::K - 1) / Product::K * Product::K;
    const int first = min((int)blockIdx.z * chunk, pixels), end = min(first + chunk, pixels);
    auto inputs = [&](int row, int p) {
        if (m0 + row >= rows || p >= end) return zero_vec<V, T>();
        const int tap = (m0 + row) / g.cin;
        return patch<V>(g, x, g.cin, p, tap, m0 + row - tap * g.cin, 1);
    };
    auto outputs = [&](int col, int p) {
        return o0 + col < g.cout && p < end ? load_vec<V>(dy + (int64_t)p * g.cout + o0 + col) : zero_vec<V, T>();
    };
    product.run(inputs, outputs, first, end);
    float* to = partial + (int64_t)blockIdx.z * rows * g.cout;
    product.each_pair([&](int row, int col, float v0, float v1) {
        if (m0 + row >= rows) return;
        store_pair(to + (int64_t)(m0 + row) * g.cout, o0 + col, g.cout, v0, v1);
    });
}

// dw (K, K, Cin, Cout): the splits in order; zero where the mask is.
template <class T>
__device__ void finish(T* dw, const float* partial, int splits, Geometry g) {
    const int64_t e = global_thread(), area = (int64_t)g.cin * g.cout, kept = g.taps() * area;
    if (e >= g.kernel * g.kernel * area) return;
    const int tap = (int)(e / area), c = (int)(e % area) / g.cout, o = (int)(e % g.cout);
    float sum = 0.f;
    if (tap < g.taps() && g.sees(tap, c, o))
        for (int s = 0; s < splits; ++s) sum += partial[s * kept + e];
    dw[e] = store<T>(sum);
}

// dz = g act'(.), given y = act(.) (for SILU its argument), and per block Σ dz into partial (blocks, C).
template <class T, int V>
__device__ void act_grad(T* dz, float* partial, const T* g, const T* y, int act, int64_t rows, int channels) {
    const Walk<V> walk(channels);
    float sums[V] = {};
    for (int64_t r = walk.first; walk.active && r < rows; r += walk.step) {
        const int64_t at = r * channels + walk.c;
        Vec<T, V> d = load_vec<V>(g + at);
        const Vec<T, V> out = load_vec<V>(y + at);
#pragma unroll
        for (int i = 0; i < V; ++i) {
            const float v = load(out.v[i]);
            float slope = 1.f;
            if (act == RELU) slope = v > 0.f ? 1.f : 0.f;
            if (act == SIGMOID) slope = v * (1.f - v);
            if (act == TANH) slope = 1.f - v * v;
            if (act == SILU) slope = sigmoid(v) * (1.f + v * (1.f - sigmoid(v)));
            d.v[i] = store<T>(act == RELU && slope == 0.f ? 0.f : load(d.v[i]) * slope);
            sums[i] += load(d.v[i]);
        }
        store_vec<V>(dz + at, d);
    }
    walk.add(partial + (int64_t)blockIdx.x * channels, sums);
}

// The blocks in order; one thread per channel.
template <class T>
__device__ void bias_grad(T* db, const float* partial, int blocks, int channels) {
    const int c = (int)global_thread();
    if (c >= channels) return;
    float sum = 0.f;
#pragma unroll 8
    for (int b = 0; b < blocks; ++b) sum += partial[(int64_t)b * channels + c];
    db[c] = store<T>(sum);
}

// Whole 16-byte vectors where both channel counts allow it, then tiles as narrow as the columns; single elements else.
#define WITH_SHAPE(f, Kind, columns, ...)                                                           \
    constexpr int WIDTH = Width<Kind>::value;                                                       \
    if (g.cin % WIDTH || g.cout % WIDTH) return f<Kind, 64, 1>(__VA_ARGS__);                         \
    if (columns <= 32) return f<Kind, 32, WIDTH>(__VA_ARGS__);                                      \
    return f<Kind, 64, WIDTH>(__VA_ARGS__);

// Elements in 16 bytes of what a kind of product reads.
template <class Kind>
struct Width {
    static constexpr int value = Pack<Kind>::WIDTH;
};
template <>
struct Width<tf32> {
    static constexpr int value = Pack<float>::WIDTH;
};

}  // namespace

extern "C" __global__ void __launch_bounds__(128) masked_conv_forward_f32(float* y, const float* x,
        const float* w, const float* bias, const float* residual, int act, Geometry g) {
    WITH_SHAPE(forward, float, g.cout, y, x, w, bias, residual, act, g)
}
extern "C" __global__ void __launch_bounds__(128) masked_conv_forward_tf32(float* y, const float* x,
        const float* w, const float* bias, const float* residual, int act, Geometry g) {
    WITH_SHAPE(forward, tf32, g.cout, y, x, w, bias, residual, act, g)
}
extern "C" __global__ void __launch_bounds__(128) masked_conv_forward_bf16(bf16* y, const bf16* x,
        const bf16* w, const bf16* bias, const bf16* residual, int act, Geometry g) {
    WITH_SHAPE(forward, bf16, g.cout, y, x, w, bias, residual, act, g)
}
extern "C" __global__ void __launch_bounds__(128) masked_conv_forward_f16(f16* y, const f16* x,
        const f16* w, const f16* bias, const f16* residual, int act, Geometry g) {
    WITH_SHAPE(forward, f16, g.cout, y, x, w, bias, residual, act, g)
}

extern "C" __global__ void __launch_bounds__(128) masked_conv_input_grad_f32(float* dx, const float* dy,
        const float* w, const float* gate, Geometry g) {
    WITH_SHAPE(input_grad, float, g.cin, dx, dy, w, gate, g)
}
extern "C" __global__ void __launch_bounds__(128) masked_conv_input_grad_tf32(float* dx, const float* dy,
        const float* w, const float* gate, Geometry g) {
    WITH_SHAPE(input_grad, tf32, g.cin, dx, dy, w, gate, g)
}
extern "C" __global__ void __launch_bounds__(128) masked_conv_input_grad_bf16(bf16* dx, const bf16* dy,
        const bf16* w, const bf16* gate, Geometry g) {
    WITH_SHAPE(input_grad, bf16, g.cin, dx, dy, w, gate, g)
}
extern "C" __global__ void __launch_bounds__(128) masked_conv_input_grad_f16(f16* dx, const f16* dy,
        const f16* w, const f16* gate, Geometry g) {
    WITH_SHAPE(input_grad, f16, g.cin, dx, dy, w, gate, g)
}

extern "C" __global__ void __launch_bounds__(128) masked_conv_weight_grad_f32(float* partial,
        const float* x, const float* dy, Geometry g) {
    WITH_SHAPE(weight_grad, float, g.cout, partial, x, dy, g)
}
extern "C" __global__ void __launch_bounds__(128) masked_conv_weight_grad_tf32(float* partial,
        const float* x, const float* dy, Geometry g) {
    WITH_SHAPE(weight_grad, tf32, g.cout, partial, x, dy, g)
}
extern "C" __global__ void __launch_bounds__(128) masked_conv_weight_grad_bf16(float* partial,
        const bf16* x, const bf16* dy, Geometry g) {
    WITH_SHAPE(weight_grad, bf16, g.cout, partial, x, dy, g)
}
extern "C" __global__ void __launch_bounds__(128) masked_conv_weight_grad_f16(float* partial, const f16* x,
        const f16* dy, Geometry g) {
    WITH_SHAPE(weight_grad, f16, g.cout, partial, x, dy, g)
}

extern "C" __global__ void masked_conv_finish_f32(float* dw, const float* partial, int splits, Geometry g) {
    finish(dw, partial, splits, g);
}
extern "C" __global__ void masked_conv_finish_bf16(bf16* dw, const float* partial, int splits, Geometry g) {
    finish(dw, partial, splits, g);
}
extern "C" __global__ void masked_conv_finish_f16(f16* dw, const float* partial, int splits, Geometry g) {
    finish(dw, partial, splits, g);
}

extern "C" __global__ void __launch_bounds__(256) masked_conv_act_grad_f32(float* dz, float* partial,
        const float* g, const float* y, int act, int64_t rows, int channels) {
    if (channels % Pack<float>::WIDTH == 0) act_grad<float, Pack<float>::WIDTH>(dz, partial, g, y, act, rows, channels);
    else act_grad<float, 1>(dz, partial, g, y, act, rows, channels);
}
extern "C" __global__ void __launch_bounds__(256) masked_conv_act_grad_bf16(bf16* dz, float* partial,
        const bf16* g, const bf16* y, int act, int64_t rows, int channels) {
    if (channels % Pack<bf16>::WIDTH == 0) act_grad<bf16, Pack<bf16>::WIDTH>(dz, partial, g, y, act, rows, channels);
    else act_grad<bf16, 1>(dz, partial, g, y, act, rows, channels);
}
extern "C" __global__ void __launch_bounds__(256) masked_conv_act_grad_f16(f16* dz, float* partial,
        const f16* g, const f16* y, int act, int64_t rows, int channels) {
    if (channels % Pack<f16>::WIDTH == 0) act_grad<f16, Pack<f16>::WIDTH>(dz, partial, g, y, act, rows, channels);
    else act_grad<f16, 1>(dz, partial, g, y, act, rows, channels);
}

extern "C" __global__ void masked_conv_bias_grad_f32(float* db, const float* partial, int blocks,
        int channels) {
    bias_grad(db, partial, blocks, channels);
}
extern "C" __global__ void masked_conv_bias_grad_bf16(bf16* db, const float* partial, int blocks,
        int channels) {
    bias_grad(db, partial, blocks, channels);
}
extern "C" __global__ void masked_conv_bias_grad_f16(f16* db, const float* partial, int blocks,
        int channels) {
    bias_grad(db, partial, blocks, channels);
}
