// The CDF of a mixture of K logistics as a monotone map with ln dy/dx, its inverse and its backward pass
// (src/ops/mixture_cdf.rs). A thread takes a number and its 2 + 3 K parameters, which it reads once from memory and up to
// three times from cache; nothing is kept for the backward pass. Sums over the components are made against running
// maxima. The inverse halves an interval in f64, as the host does, about 60 times.
//
// Bytes per number of size e: e (4 + 3 K) + 4 forward, e (7 + 6 K) backward, e (4 + 3 K) inverse; about 80 K, 120 K and
// 60 * 60 K flops (the last in f64). Bound: memory; the inverse: the f64 units.
#include "elem.cuh"

namespace {

constexpr float LOWEST_LOG_SCALE = -7.f;

// ln of a sum of exponentials, term by term.
template <class F>
struct LogSum {
    F top = -INFINITY, sum = 0;
    __device__ __forceinline__ void add(F v) {
        if (v > top) {
            sum = sum * exp(top - v) + 1;
            top = v;
        } else {
            sum += exp(v - top);
        }
    }
    __device__ __forceinline__ F ln() const { return top + log(sum); }
};

// One component: its weight (ln, not normalised), rate e^-s, z, and the ln of its terms in F, 1 - F and F'.
struct Component {
    float logit, rate, z, below, above, density;
};

template <class T>
__device__ __forceinline__ Component component(const T* row, int k, int i, float x, float log_total) {
    Component c;
    const float s = fmaxf(load(row[2 + 2 * k + i]), LOWEST_LOG_SCALE);
    c.rate = expf(-s);
    c.logit = load(row[2 + i]) - log_total;
    c.z = (x - load(row[2 + k + i])) * c.rate;
    const float low = softplus(-c.z), high = softplus(c.z);
    c.below = c.logit - low, c.above = c.logit - high, c.density = c.logit - low - high - s;
    return c;
}

// The sums over all components of a number, the weights normalised.
struct Levels {
    float log_total;
    LogSum<float> below, above, density;

    template <class T>
    __device__ __forceinline__ Levels(const T* row, int k, float x) {
        LogSum<float> total;
        for (int i = 0; i < k; ++i) total.add(load(row[2 + i]));
        log_total = total.ln();
        for (int i = 0; i < k; ++i) {
            const Component c = component(row, k, i, x, log_total);
            below.add(c.below);
            above.add(c.above);
            density.add(c.density);
        }
    }
    __device__ __forceinline__ float logit() const {
        return (below.top - above.top) + (logf(below.sum) - logf(above.sum));
    }
    __device__ __forceinline__ float slope() const {
        return ((density.top - below.top) - above.top) + ((logf(density.sum) - logf(below.sum)) - logf(above.sum));
    }
};

template <class T>
__device__ void forward(T* y, float* slope, const T* x, const T* params, int64_t n, int k) {
    const int64_t at = global_thread();
    if (at >= n) return;
    const T* row = params + at * (2 + 3 * k);
    const Levels sums(row, k, load(x[at]));
    const float log_scale = 2.f * tanhf(0.5f * load(row[0]));
    y[at] = store<T>(fmaf(sums.logit(), expf(log_scale), load(row[1])));
    slope[at] = sums.slope() + log_scale;
}

// g_y (n), g_logdet (n / each).
template <class T>
__device__ void backward(T* dx, T* dparams, const T* g_y, const T* g_logdet, const T* x, const T* params, int64_t n,
                         int64_t each, int k) {
    const int64_t at = global_thread();
    if (at >= n) return;
    const T* row = params + at * (2 + 3 * k);
    T* to = dparams + at * (2 + 3 * k);
    const float v = load(x[at]), gy = load(g_y[at]), gl = load(g_logdet[at / each]);
    const Levels sums(row, k, v);
    const float log_scale = 2.f * tanhf(0.5f * load(row[0])), stretch = gy * expf(log_scale);
    const float f = stretch - gl, c = -stretch - gl, d = gl;
    to[0] = store<T>(fmaf(stretch, sums.logit(), gl) * (1.f - 0.25f * log_scale * log_scale));
    to[1] = store<T>(gy);
    const float per_f = f / sums.below.sum, per_c = c / sums.above.sum, per_d = d / sums.density.sum;
    float sum = 0.f;
    for (int i = 0; i < k; ++i) {
        const Component p = component(row, k, i, v, sums.log_total);
        const float pf = per_f * expf(p.below - sums.below.top), pc = per_c * expf(p.above - sums.above.top);
        const float pd = per_d * expf(p.density - sums.density.top), up = sigmoid(p.z);
        const float dz = pf * sigmoid(-p.z) - pc * up + pd * (1.f - 2.f * up);
        to[2 + i] = store<T>(pf + pc + pd - expf(p.logit) * (f + c + d));
        to[2 + k + i] = store<T>(-dz * p.rate);
        const bool held = load(row[2 + 2 * k + i]) <= LOWEST_LOG_SCALE;
        to[2 + 2 * k + i] = store<T>(held ? 0.f : -p.z * dz - pd);
        sum = fmaf(dz, p.rate, sum);
    }
    dx[at] = store<T>(sum);
}

__device__ __forceinline__ double log_one_plus_exp(double z) { return fmax(z, 0.) + log1p(exp(-fabs(z))); }

template <class T>
__device__ void inverse(T* x, const T* y, const T* params, int64_t n, int k) {
    const int64_t at = global_thread();
    if (at >= n) return;
    const T* row = params + at * (2 + 3 * k);
    const double shift = load(row[1]), half = 0.5 * load(row[0]);
    const double logit = (load(y[at]) - shift) * exp(-2. * tanh(half));
    auto mean = [&](int i) { return (double)load(row[2 + k + i]); };
    auto scale = [&](int i) { return exp((double)fmaxf(load(row[2 + 2 * k + i]), LOWEST_LOG_SCALE)); };
    // Every component reaches the logit at mean + scale logit, so the mixture does between the outermost of them.
    double low = INFINITY, high = -INFINITY;
    for (int i = 0; i < k; ++i) {
        const double reach = mean(i) + scale(i) * logit;
        low = fmin(low, reach), high = fmax(high, reach);
    }
    for (int round = 0; round < 200; ++round) {
        const double middle = low + 0.5 * (high - low);
        if (!(middle > low && middle < high)) break;
        LogSum<double> below, above;
        for (int i = 0; i < k; ++i) {
            const double z = (middle - mean(i)) / scale(i), weight = load(row[2 + i]);
            below.add(weight - log_one_plus_exp(-z));
            above.add(weight - log_one_plus_exp(z));
        }
        if (below.ln() - above.ln() < logit) low = middle;
        else high = middle;
    }
    x[at] = store<T>((float)(low + 0.5 * (high - low)));
}

}  // namespace

extern "C" __global__ void mixture_cdf_forward_f32(float* y, float* slope, const float* x, const float* params,
        int64_t n, int k) {
    forward(y, slope, x, params, n, k);
}
extern "C" __global__ void mixture_cdf_forward_bf16(bf16* y, float* slope, const bf16* x, const bf16* params,
        int64_t n, int k) {
    forward(y, slope, x, params, n, k);
}
extern "C" __global__ void mixture_cdf_forward_f16(f16* y, float* slope, const f16* x, const f16* params, int64_t n,
        int k) {
    forward(y, slope, x, params, n, k);
}

extern "C" __global__ void mixture_cdf_backward_f32(float* dx, float* dparams, const float* g_y,
        const float* g_logdet, const float* x, const float* params, int64_t n, int64_t each, int k) {
    backward(dx, dparams, g_y, g_logdet, x, params, n, each, k);
}
extern "C" __global__ void mixture_cdf_backward_bf16(bf16* dx, bf16* dparams, const bf16* g_y, const bf16* g_logdet,
        const bf16* x, const bf16* params, int64_t n, int64_t each, int k) {
    backward(dx, dparams, g_y, g_logdet, x, params, n, each, k);
}
extern "C" __global__ void mixture_cdf_backward_f16(f16* dx, f16* dparams, const f16* g_y, const f16* g_logdet,
        const f16* x, const f16* params, int64_t n, int64_t each, int k) {
    backward(dx, dparams, g_y, g_logdet, x, params, n, each, k);
}

extern "C" __global__ void mixture_cdf_inverse_f32(float* x, const float* y, const float* params, int64_t n, int k) {
    inverse(x, y, params, n, k);
}
extern "C" __global__ void mixture_cdf_inverse_bf16(bf16* x, const bf16* y, const bf16* params, int64_t n, int k) {
    inverse(x, y, params, n, k);
}
extern "C" __global__ void mixture_cdf_inverse_f16(f16* x, const f16* y, const f16* params, int64_t n, int k) {
    inverse(x, y, params, n, k);
}
