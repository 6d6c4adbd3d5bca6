// Log-density under mixtures of K normal distributions, params (n, 3 K) = logits, means, log-deviations, and its
// gradients (src/ops/gaussian_mixture.rs). A thread takes a number and reads its parameters twice, the second time from
// cache; nothing is kept for the backward pass, which calculates the densities again.
// Bytes per number of size e: e (3 K + 2) forward, e (6 K + 3) backward; about 30 K and 50 K flops. Bound: memory.
#include "elem.cuh"

namespace {

constexpr float HALF_LN_TAU = 0.91893853f, LOWEST = -3.402823466e38f;

// The levels of a number's logits and of ln (weight density).
template <class T>
struct Mixture {
    const T* params;
    int k;
    float x, lowest, prior_top = LOWEST, top = LOWEST, prior_sum = 0.f, sum = 0.f;

    __device__ __forceinline__ float joint(int i, float& z, float& rate) const {
        const float s = fmaxf(load(params[2 * k + i]), lowest);
        rate = expf(-s);
        z = (x - load(params[k + i])) * rate;
        return load(params[i]) - s - HALF_LN_TAU - 0.5f * z * z;
    }

    __device__ __forceinline__ Mixture(const T* p, int k, float x, float lowest)
        : params(p), k(k), x(x), lowest(lowest) {
        float z, rate;
        for (int i = 0; i < k; ++i) {
            prior_top = fmaxf(prior_top, load(params[i]));
            top = fmaxf(top, joint(i, z, rate));
        }
        for (int i = 0; i < k; ++i) {
            prior_sum += expf(load(params[i]) - prior_top);
            sum += expf(joint(i, z, rate) - top);
        }
        prior_sum = logf(prior_sum);
        sum = logf(sum);
    }
};

template <class T>
__device__ void forward(T* nats, const T* x, const T* params, int64_t n, int k, float lowest) {
    const int64_t at = global_thread();
    if (at >= n) return;
    const float v = load(x[at]);
    if (v != v) {  // missing: marginalised
        nats[at] = store<T>(0.f);
        return;
    }
    const Mixture<T> m(params + at * 3 * k, k, v, lowest);
    nats[at] = store<T>((m.top - m.prior_top) + (m.sum - m.prior_sum));
}

template <class T>
__device__ void backward(T* dx, T* dparams, const T* g, const T* x, const T* params, int64_t n, int k, float lowest) {
    const int64_t at = global_thread();
    if (at >= n) return;
    const float v = load(x[at]), grad = load(g[at]);
    T* to = dparams + at * 3 * k;
    if (v != v) {
        for (int i = 0; i < 3 * k; ++i) to[i] = store<T>(0.f);
        dx[at] = store<T>(0.f);
        return;
    }
    const Mixture<T> m(params + at * 3 * k, k, v, lowest);
    float sum = 0.f;
    for (int i = 0; i < k; ++i) {
        float z, rate;
        const float share = expf(m.joint(i, z, rate) - m.top - m.sum), pull = share * z * rate;
        const float weight = expf(load(m.params[i]) - m.prior_top - m.prior_sum);
        to[i] = store<T>(grad * (share - weight));
        to[k + i] = store<T>(grad * pull);
        to[2 * k + i] = store<T>(load(m.params[2 * k + i]) < lowest ? 0.f : grad * share * (z * z - 1.f));
        sum -= pull;
    }
    dx[at] = store<T>(grad * sum);
}

}  // namespace

extern "C" __global__ void gaussian_mixture_forward_f32(float* nats, const float* x, const float* params, int64_t n,
        int k, float lowest) {
    forward(nats, x, params, n, k, lowest);
}
extern "C" __global__ void gaussian_mixture_forward_bf16(bf16* nats, const bf16* x, const bf16* params, int64_t n,
        int k, float lowest) {
    forward(nats, x, params, n, k, lowest);
}
extern "C" __global__ void gaussian_mixture_forward_f16(f16* nats, const f16* x, const f16* params, int64_t n, int k,
        float lowest) {
    forward(nats, x, params, n, k, lowest);
}

extern "C" __global__ void gaussian_mixture_backward_f32(float* dx, float* dparams, const float* g, const float* x,
        const float* params, int64_t n, int k, float lowest) {
    backward(dx, dparams, g, x, params, n, k, lowest);
}
extern "C" __global__ void gaussian_mixture_backward_bf16(bf16* dx, bf16* dparams, const bf16* g, const bf16* x,
        const bf16* params, int64_t n, int k, float lowest) {
    backward(dx, dparams, g, x, params, n, k, lowest);
}
extern "C" __global__ void gaussian_mixture_backward_f16(f16* dx, f16* dparams, const f16* g, const f16* x,
        const f16* params, int64_t n, int k, float lowest) {
    backward(dx, dparams, g, x, params, n, k, lowest);
}
