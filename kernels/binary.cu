// y = f(a, b) elementwise with broadcasting, the functions of src/ops/binary.rs, and sums in place.
// Bytes: two reads, one write (12 per element at f32, less where an input is repeated); flops: 1 to 15 per
// element. Bound: memory.
#include "elem.cuh"

// In the order of `Function` in src/ops/binary.rs. The last five are gradients: a is the gradient behind an
// activation, b the activation's output (for silu and gelu: its input).
enum Function {
    ADD,
    SUB,
    MUL,
    DIV,
    MAXIMUM,
    MINIMUM,
    GT,
    GE,
    EQ,
    KEEP_WHERE,
    RELU_GRAD,
    SIGMOID_GRAD,
    TANH_GRAD,
    SILU_GRAD,
    GELU_GRAD
};

__device__ __forceinline__ float apply(int f, float a, float b) {
    switch (f) {
        case ADD: return a + b;
        case SUB: return a - b;
        case MUL: return a * b;
        case DIV: return a / b;
        case MAXIMUM: return fmaxf(a, b);
        case MINIMUM: return fminf(a, b);
        case GT: return a > b ? 1.f : 0.f;
        case GE: return a >= b ? 1.f : 0.f;
        case EQ: return a == b ? 1.f : 0.f;
        case KEEP_WHERE: return a == 0.f ? 0.f : b;
        case RELU_GRAD: return b > 0.f ? a : 0.f;
        case SIGMOID_GRAD: return a * b * (1.f - b);
        case TANH_GRAD: return a * (1.f - b * b);
        case SILU_GRAD: {
            float s = sigmoid(b);
            return a * s * (1.f + b * (1.f - s));
        }
        case GELU_GRAD:
            return a * (0.5f * (1.f + erff(0.70710678f * b)) + b * 0.39894228f * expf(-0.5f * b * b));
    }
    return a;
}

// Merged dimensions of the output, outermost first, with the steps of both inputs in elements (0: repeated).
struct Broadcast {
    uint32_t rank, size[6], a[6], b[6];
};

// Packs lie within one row of the innermost dimension, whose steps are 0 or 1.
template <class T>
__device__ __forceinline__ Pack<T> load_side(const T* p, uint32_t at, uint32_t step) {
    if (step == 1) return *reinterpret_cast<const Pack<T>*>(p + at);
    Pack<T> pack;
#pragma unroll
    for (int i = 0; i < Pack<T>::WIDTH; ++i) pack.v[i] = p[at];
    return pack;
}

__device__ __forceinline__ void offsets(const Broadcast& d, uint32_t at, uint32_t& oa, uint32_t& ob) {
    oa = ob = 0;
    for (int i = (int)d.rank - 1; i >= 0; --i) {
        uint32_t k = at % d.size[i];
        at /= d.size[i];
        oa += k * d.a[i];
        ob += k * d.b[i];
    }
}

// One pack per thread where rows are whole packs; else one element per thread.
template <class T>
__device__ void binary(T* y, const T* a, const T* b, uint32_t n, int f, const Broadcast& d, int packed) {
    uint32_t oa, ob;
    if (packed) {
        int64_t at = first_element<T>();
        if (at >= n) return;
        offsets(d, (uint32_t)at, oa, ob);
        Pack<T> x = load_side(a, oa, d.a[d.rank - 1]), z = load_side(b, ob, d.b[d.rank - 1]);
#pragma unroll
        for (int i = 0; i < Pack<T>::WIDTH; ++i) x.v[i] = store<T>(apply(f, load(x.v[i]), load(z.v[i])));
        *reinterpret_cast<Pack<T>*>(y + at) = x;
    } else {
        int64_t at = global_thread();
        if (at >= n) return;
        offsets(d, (uint32_t)at, oa, ob);
        y[at] = store<T>(apply(f, load(a[oa]), load(b[ob])));
    }
}

// sum += x, one pack per thread.
template <class T>
__device__ void accumulate(T* sum, const T* x, int64_t n) {
    int64_t at = first_element<T>();
    if (at >= n) return;
    Pack<T> s = load_pack<T>(sum, at, n), z = load_pack(x, at, n);
#pragma unroll
    for (int i = 0; i < Pack<T>::WIDTH; ++i) s.v[i] = store<T>(load(s.v[i]) + load(z.v[i]));
    store_pack(sum, at, n, s);
}

extern "C" __global__ void binary_f32(float* y, const float* a, const float* b, uint32_t n, int f,
                                      Broadcast d, int packed) {
    binary(y, a, b, n, f, d, packed);
}
extern "C" __global__ void binary_bf16(bf16* y, const bf16* a, const bf16* b, uint32_t n, int f, Broadcast d,
                                       int packed) {
    binary(y, a, b, n, f, d, packed);
}
extern "C" __global__ void binary_f16(f16* y, const f16* a, const f16* b, uint32_t n, int f, Broadcast d,
                                      int packed) {
    binary(y, a, b, n, f, d, packed);
}
extern "C" __global__ void accumulate_f32(float* sum, const float* x, int64_t n) { accumulate(sum, x, n); }
extern "C" __global__ void accumulate_bf16(bf16* sum, const bf16* x, int64_t n) { accumulate(sum, x, n); }
extern "C" __global__ void accumulate_f16(f16* sum, const f16* x, int64_t n) { accumulate(sum, x, n); }
