// Drawing images pixel by pixel from a network of masked convolutions, the whole loop over pixels in one launch
// (src/models/autoregressive/walk.rs). A block draws four images from the first pixel to the last: of every layer it
// calculates what the new pixel needs, at that pixel alone, from the activations of the pixels before it. Layers are rows
// of a table, so the kernel knows no architecture.
//
// Vectors of the present pixel live in shared memory, activations of earlier pixels (image, position, channel) in memory
// of the block's own, weights in L2: a block reads all of them once per pixel and uses each four times.
// Bytes per pixel and block: the weights, e each; flops: 8 per weight. PixelCNN with 64 channels and 6 blocks: 78,000
// weights, 0.6 Mflop. Bound: L2's bandwidth to one multiprocessor, about 3 us per pixel in f32; 3 barriers per layer.
#include "philox.cuh"
#include "vec.cuh"

namespace {

constexpr int IMAGES = 4, THREADS = 256;

// As `Sizes` in src/models/autoregressive/walk.rs.
struct Sizes {
    int images, height, width, colours, levels, layers;
    int vector;  // numbers of a pixel's vectors, per image; the last colours * levels of them are the logits
    int grid;    // numbers of an image's activations; the first height * width * colours of them are its pixels
    int widest;  // the most numbers that an output of a layer depends on
    float coldness, scale, shift;  // 1 / temperature; a byte becomes byte * scale + shift
};

// As `Layer` in src/models/autoregressive/walk.rs: a convolution at one pixel, for the channels of one colour.
struct Layer {
    int weights, bias;   // of the first colour; those of the others follow
    int taps, count;     // the first of its taps in the table, and their number
    int inputs, outputs; // channels that a tap reads, and channels of one colour that are written
    int from, to, add;   // a vector or a grid; the vector that is added, or -1
    int flags;
};
enum Flags { RELU_BEFORE = 1, RELU_BEHIND = 2, FROM_GRID = 4, TO_GRID = 8 };

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
        const int k = layer.count * layer.inputs;
        for (int e = threadIdx.x; e < IMAGES * k; e += THREADS) {
            const int image = e / k, at = e % k, tap = at / layer.inputs, c = at % layer.inputs;
            float v = 0.f;
            if (!(layer.flags & FROM_GRID)) {
                v = vectors[image * d.vector + layer.from + c];
            } else if (first + image < d.images) {
                const int y = i + taps[2 * (layer.taps + tap)], x = j + taps[2 * (layer.taps + tap) + 1];
                if (y >= 0 && x >= 0 && y < d.height && x < d.width)
                    v = load(grid(d, image, layer.from)[(int64_t)(y * d.width + x) * layer.inputs + c]);
            }
            seen[image * d.widest + at] = layer.flags & RELU_BEFORE ? fmaxf(v, 0.f) : v;
        }
    }

    // Products with the weights: a thread takes an output and a slice of the inputs; slices are added in order.
    __device__ __forceinline__ void apply(const Layer& layer, const Sizes& d, int position, int colour) const {
        const int k = layer.count * layer.inputs, outputs = layer.outputs;
        const T* w = weights + layer.weights + colour * k * outputs;
        const T* bias = weights + layer.bias + colour * outputs;
        for (int o0 = 0; o0 < outputs; o0 += THREADS) {
            const int here = min(outputs - o0, THREADS), slices = THREADS / here;
            const int o = threadIdx.x % here, slice = threadIdx.x / here;
            if (slice < slices) {
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
            for (int e = threadIdx.x; e < IMAGES * here; e += THREADS) {
                const int image = e / here, out = e % here, c = colour * outputs + o0 + out;
                float v = load(bias[o0 + out]);
                for (int s = 0; s < slices; ++s) v += parts[image * THREADS + s * here + out];
                if (layer.add >= 0) v += vectors[image * d.vector + layer.add + c];
                if (layer.flags & RELU_BEHIND) v = fmaxf(v, 0.f);
                const T rounded = store<T>(v);
                if (!(layer.flags & TO_GRID)) vectors[image * d.vector + layer.to + c] = load(rounded);
                else if (first + image < d.images)
                    grid(d, image, layer.to)[(int64_t)position * outputs * d.colours + c] = rounded;
            }
            __syncthreads();
        }
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

// images (N, H, W, colours) bytes; failed (N): 1 where logits were not finite; grids (N, grid), zero at the start. Dynamic
// shared memory: IMAGES (vector + widest + THREADS) floats.
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
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, pixels = d.height * d.width * d.colours;
    const bool draws = warp < IMAGES && w.first + warp < d.images;
    if (draws && lane == 0) failed[w.first + warp] = 0;
    __syncthreads();
    for (int at = 0; at < pixels; ++at) {
        const int position = at / d.colours, colour = at % d.colours;
        for (int l = 0; l < d.layers; ++l) {
            const Layer layer = reinterpret_cast<const Layer*>(layers)[l];
            w.gather(layer, d, position / d.width, position % d.width);
            __syncthreads();
            w.apply(layer, d, position, colour);
        }
        if (draws) {
            const int64_t element = (int64_t)(w.first + warp) * pixels + at;
            const uint4 words = draw.words((uint32_t)(element / 4));
            const int part = (int)(element % 4);
            const uint32_t word = part == 0 ? words.x : part == 1 ? words.y : part == 2 ? words.z : words.w;
            const float* logits = memory + (warp + 1) * d.vector - (d.colours - colour) * d.levels;
            const int found = pick(logits, d.levels, d.coldness, ((double)word + .5) * (1. / 4294967296.));
            if (lane == 0) {
                if (found < 0) failed[w.first + warp] = 1;
                const int byte = max(found, 0);
                images[element] = (uint8_t)byte;
                w.grid(d, warp, 0)[at] = store<T>(fmaf((float)byte, d.scale, d.shift));
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
