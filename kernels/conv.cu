// Convolution over an explicit list of taps, channels last, as implicit matrix products; masked kernels list
// fewer taps. x (B, H, W, Cin), w (taps, Cin, Cout), y (B, OH, OW, Cout): y[b, oy, ox] = sum_t x[b, oy s +
// dy_t, ox s + dx_t] w[t]. Bytes: x, w and y once (neighbouring taps hit the cache); flops: 2 B OH OW taps
// Cin Cout. Bound: tensor cores for bf16, f16 and tf32 (SASS: HMMA), FMA for f32.
#include "gemm.cuh"

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
