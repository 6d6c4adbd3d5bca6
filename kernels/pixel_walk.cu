// Drawing images pixel by pixel from a network of masked or shifted convolutions, the whole loop over pixels in one launch
// (src/models/autoregressive/walk.rs). A block draws four images from the first pixel to the last: of every layer it
// calculates what the new pixel needs, at that pixel alone, from the activations of the pixels before it; layers that look up
// only are calculated for all columns when a row begins. Layers are rows of a table, so the kernel knows no architecture.
//
// Vectors of the present pixel live in shared memory, activations of earlier pixels (image, position, channel) in memory
// of the block's own, weights in L2: a block reads all of them once per pixel and uses each four times.
// Bytes per pixel and block: the weights, e each; flops: 8 per weight. PixelCNN with 64 channels and 6 blocks: 78,000
// weights, 0.6 Mflop; PixelCNN++ with 32 channels and 4 blocks: 254,000 weights, 2 Mflop. Bound: L2's bandwidth to one
// multiprocessor, about 3 and 9 us per pixel in f32; 3 barriers per layer.
#include "philox.cuh"
#include "vec.cuh"

namespace {

constexpr int IMAGES = 4, THREADS = 256;

// As `Sizes` in src/models/autoregressive/walk.rs.
struct Sizes {
    int images, height, width, colours;
    int levels;      // of softmaxes over the bytes of a colour, or 0:
    int components;  // of a mixture of logistics over the colours of a pixel
    int groups;      // of channels: the colours, each with layers of its own, or 1
    int layers, rows;  // layers, of which the first `rows` are for whole rows
    int vector;  // numbers of a pixel's vectors, per image; the last of them are what is drawn from
    int grid;    // numbers of an image's activations; the first of them are its pixels
    int ones;    // whether a pixel has a channel of ones behind its colours
    int widest;  // the most numbers that an output of a layer depends on
    float coldness, scale, shift;  // 1 / temperature; a byte becomes byte * scale + shift
    float temperature;
};

// As `Layer` in src/models/autoregressive/walk.rs: a convolution at one pixel, for the channels of one group.
struct Layer {
    int weights, bias;    // of the first group; those of the others follow
    int taps, count;      // the first of its taps in the table, and their number
    int inputs, outputs;  // channels that a tap reads, and sums of one group
    int from, to, add;    // a vector or a grid; what is added, or -1
    int flags;
};
enum Flags {
    RELU_BEFORE = 1,
    RELU_BEHIND = 2,
    FROM_GRID = 4,
    TO_GRID = 8,
    ADD_GRID = 16,
    ELU_BEFORE = 32,   // a tap sees elu of (x, -x)
    GATED = 64,        // pairs of sums (p, q) are written as p sigmoid(q)
    BELOW_TOP = 128,   // the sums count as 0 in the first row,
    RIGHT_OF_LEFT = 256,  // or in the first column
};

__device__ __forceinline__ float elu(float x) { return x > 0.f ? x : expm1f(x); }

template <class T>
struct Walk {
    T* grids;
    const T* weights;
    const int *layers, *taps;
    float *vectors, *seen, *parts;
    int first;  // image

    __device__ __forceinline__ T* grid(const Sizes& d, int image, int offset) const {
        return grids + (int64_t)(first + image) * d.grid + offset;
    }

    // What the layer reads at pixel (i, j), (image, tap, channel), zero outside the images.
    __device__ __forceinline__ void gather(const Layer& layer, const Sizes& d, int i, int j) const {
        const int wide = layer.flags & ELU_BEFORE ? 2 * layer.inputs : layer.inputs, k = layer.count * wide;
        for (int e = threadIdx.x; e < IMAGES * k; e += THREADS) {
            const int image = e / k, at = e % k, tap = at / wide;
            const bool mirrored = at % wide >= layer.inputs;
            const int c = at % wide - (mirrored ? layer.inputs : 0);
            float v = 0.f;
            if (!(layer.flags & FROM_GRID)) {
                v = vectors[image * d.vector + layer.from + c];
            } else if (first + image < d.images) {
                const int y = i + taps[2 * (layer.taps + tap)], x = j + taps[2 * (layer.taps + tap) + 1];
                if (y >= 0 && x >= 0 && y < d.height && x < d.width)
                    v = load(grid(d, image, layer.from)[(int64_t)(y * d.width + x) * layer.inputs + c]);
            }
            if (layer.flags & ELU_BEFORE) v = elu(mirrored ? -v : v);
            seen[image * d.widest + at] = layer.flags & RELU_BEFORE ? fmaxf(v, 0.f) : v;
        }
    }

    // Products with the weights: a thread takes an output and a slice of the inputs; slices are added in order.
    __device__ __forceinline__ void apply(const Layer& layer, const Sizes& d, int position, int group, bool empty) const {
        const int k = layer.count * layer.inputs * (layer.flags & ELU_BEFORE ? 2 : 1), outputs = layer.outputs;
        const int per = layer.flags & GATED ? 2 : 1, channels = outputs / per * d.groups;
        const T* w = weights + layer.weights + group * k * outputs;
        const T* bias = weights + layer.bias + group * outputs;
        for (int o0 = 0; o0 < outputs; o0 += THREADS) {
            const int here = min(outputs - o0, THREADS), slices = THREADS / here;
            const int o = threadIdx.x % here, slice = threadIdx.x / here;
            if (slice < slices && !empty) {
                float sums[IMAGES] = {};
                const int begin = k * slice / slices, end = k * (slice + 1) / slices;
#pragma unroll 4
                for (int at = begin; at < end; ++at) {
                    const float weight = load(w[(int64_t)at * outputs + o0 + o]);
#pragma unroll
                    for (int image = 0; image < IMAGES; ++image)
                        sums[image] = fmaf(seen[image * d.widest + at], weight, sums[image]);
                }
#pragma unroll
                for (int image = 0; image < IMAGES; ++image) parts[image * THREADS + threadIdx.x] = sums[image];
            }
            __syncthreads();
            for (int e = threadIdx.x; e < IMAGES * here / per; e += THREADS) {
                const int image = e / (here / per), out = e % (here / per), c = (group * outputs + o0) / per + out;
                if (first + image >= d.images) continue;
                auto sum = [&](int column) {
                    float v = load(bias[o0 + column]);
                    for (int s = 0; s < slices; ++s) v += parts[image * THREADS + s * here + column];
                    return v;
                };
                float v = 0.f;
                if (!empty) v = layer.flags & GATED ? sum(2 * out) * sigmoid(sum(2 * out + 1)) : sum(out);
                const int64_t at = (int64_t)position * channels + c;
                if (layer.add >= 0)
                    v += layer.flags & ADD_GRID ? load(grid(d, image, layer.add)[at])
                                                : vectors[image * d.vector + layer.add + c];
                if (layer.flags & RELU_BEHIND) v = fmaxf(v, 0.f);
                const T rounded = store<T>(v);
                if (layer.flags & TO_GRID) grid(d, image, layer.to)[at] = rounded;
                else vectors[image * d.vector + layer.to + c] = load(rounded);
            }
            __syncthreads();
        }
    }

    // Layer `l` at pixel (i, j).
    __device__ __forceinline__ void run(int l, const Sizes& d, int i, int j, int group) const {
        const Layer layer = reinterpret_cast<const Layer*>(layers)[l];
        const bool empty = (layer.flags & BELOW_TOP && i == 0) || (layer.flags & RIGHT_OF_LEFT && j == 0);
        if (!empty) gather(layer, d, i, j);
        __syncthreads();
        apply(layer, d, i * d.width + j, group, empty);
    }
};

// The category of softmax(logits / temperature) at which the distribution function passes u, by a warp; -1 when there is
// none. Every lane gets it.
__device__ __forceinline__ int pick(const float* logits, int levels, float coldness, double u) {
    const int lane = threadIdx.x % 32;
    float top = -3.402823466e38f;
    for (int i = lane; i < levels; i += 32) top = fmaxf(top, logits[i]);
    top = warp_reduce(top, Max());
    return warp_pick(levels, u, [&](int i) { return (double)expf((logits[i] - top) * coldness); });
}

// The uniform number of element `element` of a draw, in (0, 1).
__device__ __forceinline__ double uniform_of(const Philox& draw, int64_t element) {
    return ((double)draw.word(element) + .5) * (1. / 4294967296.);
}

// The bytes of a pixel from a mixture of K logistics (`draw` in src/ops/logistic_mixture.rs says where its parameters lie)
// with the uniform numbers from `element` on, by a warp; false where a parameter is not finite. Lane 0 has the bytes.
__device__ __forceinline__ bool mix(int (&bytes)[3], const float* params, int colours, int K, double temperature,
                                    const Philox& draw, int64_t element) {
    const int lane = threadIdx.x % 32, parts = colours == 1 ? 2 : 3, all = K * (1 + colours * parts);
    bool finite = true;
    for (int i = lane; i < all; i += 32) finite = finite && fabsf(params[i]) < INFINITY;
    if (!__all_sync(0xffffffffu, finite)) return false;
    float top = -3.402823466e38f;
    for (int i = lane; i < K; i += 32) top = fmaxf(top, params[i]);
    top = warp_reduce(top, Max());
    const int chosen = warp_pick(K, uniform_of(draw, element), [&](int i) {
        return exp(((double)params[i] - top) / temperature);
    });
    if (chosen < 0) return false;
    if (lane > 0) return true;
    auto at = [&](int colour, int part) { return (double)params[K * (1 + colour * parts + part) + chosen]; };
    double seen[3] = {};
#pragma unroll
    for (int colour = 0; colour < 3; ++colour) {
        if (colour >= colours) break;
        double mean = at(colour, 0);
        if (colour == 1) mean += tanh(at(0, 2)) * seen[0];
        if (colour == 2) mean += tanh(at(1, 2)) * seen[0] + tanh(at(2, 2)) * seen[1];
        const double scale = exp(fmax(at(colour, 1), -7.)) * temperature, u = uniform_of(draw, element + 1 + colour);
        const double v = mean + scale * (log(u) - log(1. - u));
        const double byte = fmin(fmax(round((v + 1.) * 127.5), 0.), 255.);
        bytes[colour] = (int)byte;
        seen[colour] = byte * (2. / 255.) - 1.;
    }
    return true;
}

// images (N, H, W, colours) bytes; failed (N): 1 where what is drawn from was not finite; grids (N, grid), zero at the start.
// Dynamic shared memory: IMAGES (vector + widest + THREADS) floats.
template <class T>
__device__ void walk(uint8_t* images, int* failed, T* grids, const T* weights, const int* layers, const int* taps,
                     const Sizes& d, const Philox& draw) {
    DYN_SHARED(float, memory);
    const Walk<T> w{grids,
                    weights,
                    layers,
                    taps,
                    memory,
                    memory + IMAGES * d.vector,
                    memory + IMAGES * (d.vector + d.widest),
                    (int)blockIdx.x * IMAGES};
    for (int e = threadIdx.x; e < IMAGES * d.vector; e += THREADS) memory[e] = 0.f;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, image = w.first + warp, pixels = d.height * d.width;
    const bool draws = warp < IMAGES && image < d.images;
    if (draws && lane == 0) failed[image] = 0;
    __syncthreads();
    for (int at = 0; at < pixels * d.groups; ++at) {
        const int position = at / d.groups, group = at % d.groups, i = position / d.width, j = position % d.width;
        if (j == 0 && group == 0)
            for (int l = 0; l < d.rows; ++l)
                for (int column = 0; column < d.width; ++column) w.run(l, d, i, column, 0);
        for (int l = d.rows; l < d.layers; ++l) w.run(l, d, i, j, group);
        if (draws) {
            const float* end = memory + (warp + 1) * d.vector;
            const int64_t place = (int64_t)image * pixels + position;
            T* pixel = w.grid(d, warp, 0) + (int64_t)position * (d.colours + d.ones);
            int bytes[3] = {};
            bool good;
            if (d.components > 0) {
                const float* params = end - d.components * (d.colours == 1 ? 3 : 10);
                const int64_t element = place * (1 + d.colours);
                good = mix(bytes, params, d.colours, d.components, d.temperature, draw, element);
            } else {
                const float* logits = end - (d.colours - group) * d.levels;
                bytes[0] = pick(logits, d.levels, d.coldness, uniform_of(draw, place * d.colours + group));
                good = bytes[0] >= 0;
            }
            if (lane == 0) {
                if (!good) failed[image] = 1;
                const int each = d.colours / d.groups;
#pragma unroll
                for (int c = 0; c < 3; ++c) {
                    if (c >= each) break;
                    const int byte = max(bytes[c], 0);
                    images[place * d.colours + group + c] = (uint8_t)byte;
                    pixel[group + c] = store<T>(fmaf((float)byte, d.scale, d.shift));
                }
                if (d.ones) pixel[d.colours] = store<T>(1.f);
            }
        }
        __syncthreads();
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(256, 2) pixel_walk_f32(uint8_t* images, int* failed, float* grids,
        const float* weights, const int* layers, const int* taps, Sizes d, Philox draw) {
    walk(images, failed, grids, weights, layers, taps, d, draw);
}
extern "C" __global__ void __launch_bounds__(256, 2) pixel_walk_bf16(uint8_t* images, int* failed, bf16* grids,
        const bf16* weights, const int* layers, const int* taps, Sizes d, Philox draw) {
    walk(images, failed, grids, weights, layers, taps, d, draw);
}
extern "C" __global__ void __launch_bounds__(256, 2) pixel_walk_f16(uint8_t* images, int* failed, f16* grids,
        const f16* weights, const int* layers, const int* taps, Sizes d, Philox draw) {
    walk(images, failed, grids, weights, layers, taps, d, draw);
}
