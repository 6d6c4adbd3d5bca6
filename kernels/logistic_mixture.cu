// Discretised mixture of logistics: log-likelihood of pixels and its gradient (formulas in src/ops/logistic_mixture.rs).
//
// params (N, P), x (N, C) bytes, C = 1 or 3; P = 3 K or 10 K. A block takes blockDim.x pixels: their parameters are one
// contiguous piece, brought into shared memory in rows of odd length; each thread owns a pixel. Backward works the
// likelihood out twice (the sum over components first, then each component's share), so that the gradients take
// the place of the parameters and leave as one contiguous piece.
//
// Per pixel, at element size e: forward e (P + 1) + C bytes, backward e (2 P + 1) + C bytes; about 60 and 150 flops per
// component and channel, a third of them in the special function unit. K = 5 grey in f32: 65 bytes, 300 flops; K = 10
// RGB: 407 bytes, 1,800 flops. Bound: memory for grey, the special function unit for RGB backward.
//
// Dynamic shared memory: blockDim.x (P | 1) floats. Launched by src/ops/logistic_mixture.rs.
#include "elem.cuh"

namespace {

constexpr float HALF_BIN = 1.f / 255.f, LOWEST = -7.f, LOG_BIN = -4.84811636f;  // ln(2 / 255)

// What src/ops/logistic_mixture.rs passes.
struct Layout {
    int pixels, channels, components;

    __device__ __forceinline__ int params() const { return (channels == 1 ? 3 : 10) * components; }
    __device__ __forceinline__ int pitch() const { return params() | 1; }
    // The first of the means (part 0), log-scales (1) or coefficients (2) of a channel.
    __device__ __forceinline__ int at(int channel, int part) const {
        return components * (1 + channel * (channels == 1 ? 2 : 3) + part);
    }
};

// The channel whose coefficients say how `channel` depends on `earlier`.
__device__ __forceinline__ int slot(int channel, int earlier) { return channel == 1 ? 0 : 1 + earlier; }

// ln(1 - e^-d), given ln d.
__device__ __forceinline__ float log_width(float d, float ln_d) {
    if (d >= 0.25f) return logf(1.f - expf(-d));
    const float d2 = d * d;
    float p = fmaf(-1.f / 9676800.f, d2, 1.f / 181440.f);
    p = fmaf(fmaf(p, d2, -1.f / 2880.f), d2, 1.f / 24.f);
    return ln_d + fmaf(p, d2, d * -0.5f);
}

// d / (e^d - 1).
__device__ __forceinline__ float width_slope(float d) {
    if (d >= 0.25f) {
        const float e = expf(-d);
        return d * e / (1.f - e);
    }
    const float d2 = d * d;
    float p = fmaf(-1.f / 1209600.f, d2, 1.f / 30240.f);
    p = fmaf(fmaf(p, d2, -1.f / 720.f), d2, 1.f / 12.f);
    return fmaf(p, d2, fmaf(d, -0.5f, 1.f));
}

struct BinGrad {
    float log, mean, scale;
};

// ln p of one channel under one component and, when wanted, the derivatives by mean and log-scale.
template <bool GRAD>
__device__ __forceinline__ BinGrad bin(int byte, float v, float mean, float log_scale) {
    const float clamped = fmaxf(log_scale, LOWEST), inverse = expf(-clamped);
    // Bounded, so that a product with a vanishing slope is 0 and not NaN.
    const float a = fminf(fmaxf((v - mean + HALF_BIN) * inverse, -1e30f), 1e30f);
    const float b = fminf(fmaxf((v - mean - HALF_BIN) * inverse, -1e30f), 1e30f);
    const float d = inverse * (2.f * HALF_BIN);
    const bool first = byte == 0, last = byte == 255;
    BinGrad out = {0.f, 0.f, 0.f};
    if (!last) out.log -= softplus(-a);
    if (!first) out.log -= softplus(b);
    if (!first && !last) out.log += log_width(d, LOG_BIN - clamped);
    if (GRAD) {
        const float da = last ? 0.f : sigmoid(-a), db = first ? 0.f : -sigmoid(b);
        const float dd = first || last ? 0.f : width_slope(d);
        out.mean = -(da + db) * inverse;
        out.scale = log_scale < LOWEST ? 0.f : -(da * a + db * b + dd);
    }
    return out;
}

// A running ln Σ e^x.
struct LogSum {
    float top = -INFINITY, sum = 0.f;
    __device__ __forceinline__ void add(float x) {
        if (x > top) {
            sum = sum * expf(top - x) + 1.f;
            top = x;
        } else {
            sum += x == top ? 1.f : expf(x - top);
        }
    }
    __device__ __forceinline__ float log() const { return logf(sum); }
};

template <class T>
__device__ void stage(float* rows, const T* params, int64_t at, int size, const Layout& l) {
    const int p = l.params(), pitch = l.pitch();
    const T* from = params + at * p;  // blocks start at multiples of 32 pixels, so packs are aligned
    for (int e = threadIdx.x * Pack<T>::WIDTH; e < size; e += blockDim.x * Pack<T>::WIDTH) {
        const Pack<T> pack = load_pack(from, e, size);
#pragma unroll
        for (int i = 0; i < Pack<T>::WIDTH; ++i)
            if (e + i < size) rows[(e + i) / p * pitch + (e + i) % p] = load(pack.v[i]);
    }
    __syncthreads();
}

struct Pixel {
    int bytes[3];
    float values[3];
    __device__ __forceinline__ Pixel(const uint8_t* x, int channels) {
#pragma unroll
        for (int c = 0; c < 3; ++c) {
            bytes[c] = c < channels ? x[c] : 0;
            values[c] = (float)bytes[c] * (1.f / 127.5f) - 1.f;
        }
    }
};

__device__ __forceinline__ float mean_of(const float* row, int channel, int j, const Pixel& x, const Layout& l) {
    float mean = row[l.at(channel, 0) + j];
    for (int earlier = 0; earlier < channel; ++earlier)
        mean += tanhf(row[l.at(slot(channel, earlier), 2) + j]) * x.values[earlier];
    return mean;
}

// ln p(pixel, component j), but for the mixture's normaliser.
__device__ __forceinline__ float joint(const float* row, int j, const Pixel& x, const Layout& l) {
    float sum = row[j];
#pragma unroll
    for (int c = 0; c < 3; ++c)
        if (c < l.channels) sum += bin<false>(x.bytes[c], x.values[c], mean_of(row, c, j, x, l), row[l.at(c, 1) + j]).log;
    return sum;
}

template <class T>
__device__ void forward(T* nats, const T* params, const uint8_t* x, Layout l) {
    DYN_SHARED(float, rows);
    const int64_t at = (int64_t)blockIdx.x * blockDim.x;
    const int count = min((int)(l.pixels - at), (int)blockDim.x), i = threadIdx.x;
    stage(rows, params, at, count * l.params(), l);
    if (i >= count) return;
    const float* row = rows + i * l.pitch();
    const Pixel pixel(x + (at + i) * l.channels, l.channels);
    LogSum prior, all;
    for (int j = 0; j < l.components; ++j) {
        prior.add(row[j]);
        all.add(joint(row, j, pixel, l));
    }
    nats[at + i] = store<T>((all.top - prior.top) + (all.log() - prior.log()));
}

template <class T>
__device__ void backward(T* dparams, const T* g, const T* params, const uint8_t* x, Layout l) {
    DYN_SHARED(float, rows);
    const int64_t at = (int64_t)blockIdx.x * blockDim.x;
    const int count = min((int)(l.pixels - at), (int)blockDim.x), i = threadIdx.x;
    const int p = l.params(), pitch = l.pitch();
    stage(rows, params, at, count * p, l);
    if (i < count) {
        float* row = rows + i * pitch;
        const Pixel pixel(x + (at + i) * l.channels, l.channels);
        const float weight = load(g[at + i]);
        LogSum prior, all;
        for (int j = 0; j < l.components; ++j) {
            prior.add(row[j]);
            all.add(joint(row, j, pixel, l));
        }
        const float log_prior = prior.log(), log_all = all.log();
        for (int j = 0; j < l.components; ++j) {
            float sum = row[j];
            BinGrad grads[3];
#pragma unroll
            for (int c = 0; c < 3; ++c) {
                if (c >= l.channels) continue;
                grads[c] = bin<true>(pixel.bytes[c], pixel.values[c], mean_of(row, c, j, pixel, l), row[l.at(c, 1) + j]);
                sum += grads[c].log;
            }
            const float share = expf((sum - all.top) - log_all);
            row[j] = weight * (share - expf((row[j] - prior.top) - log_prior));
            const float scale = weight * share;
#pragma unroll
            for (int c = 0; c < 3; ++c) {
                if (c >= l.channels) continue;
                row[l.at(c, 0) + j] = scale * grads[c].mean;
                row[l.at(c, 1) + j] = scale * grads[c].scale;
                for (int earlier = 0; earlier < c; ++earlier) {
                    float& raw = row[l.at(slot(c, earlier), 2) + j];
                    const float t = tanhf(raw);
                    raw = scale * grads[c].mean * (1.f - t * t) * pixel.values[earlier];
                }
            }
        }
    }
    __syncthreads();
    for (int e = threadIdx.x; e < count * p; e += blockDim.x) dparams[at * p + e] = store<T>(rows[e / p * pitch + e % p]);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(128) logistic_mixture_forward_f32(float* nats,
        const float* params, const uint8_t* x, Layout l) {
    forward(nats, params, x, l);
}
extern "C" __global__ void __launch_bounds__(128) logistic_mixture_forward_bf16(bf16* nats,
        const bf16* params, const uint8_t* x, Layout l) {
    forward(nats, params, x, l);
}
extern "C" __global__ void __launch_bounds__(128) logistic_mixture_forward_f16(f16* nats, const f16* params,
        const uint8_t* x, Layout l) {
    forward(nats, params, x, l);
}

extern "C" __global__ void __launch_bounds__(128) logistic_mixture_backward_f32(float* dparams,
        const float* g, const float* params, const uint8_t* x, Layout l) {
    backward(dparams, g, params, x, l);
}
extern "C" __global__ void __launch_bounds__(128) logistic_mixture_backward_bf16(bf16* dparams,
        const bf16* g, const bf16* params, const uint8_t* x, Layout l) {
    backward(dparams, g, params, x, l);
}
extern "C" __global__ void __launch_bounds__(128) logistic_mixture_backward_f16(f16* dparams, const f16* g,
        const f16* params, const uint8_t* x, Layout l) {
    backward(dparams, g, params, x, l);
}
