// y = f(x) elementwise, the functions of src/ops/unary.rs.
// Bytes: one read, one write (8 per element at f32); flops: 1 to 20 per element. Bound: memory.
#include "elem.cuh"

// In the order of `Function` in src/ops/unary.rs.
enum Function {
    NEG,
    EXP,
    LN,
    SQRT,
    RECIP,
    ABS,
    SQUARE,
    TANH,
    SIGMOID,
    SOFTPLUS,
    ERF,
    GELU,
    RELU,
    SIGN,
    STEP,
    FLOOR,
    AFFINE,
    CLAMP
};

__device__ __forceinline__ float apply(Function f, float x, float a, float b) {
    switch (f) {
        case NEG: return -x;
        case EXP: return expf(x);
        case LN: return logf(x);
        case SQRT: return sqrtf(x);
        case RECIP: return 1.f / x;
        case ABS: return fabsf(x);
        case SQUARE: return x * x;
        case TANH: return tanhf(x);
        case SIGMOID: return sigmoid(x);
        case SOFTPLUS: return softplus(x);
        case ERF: return erff(x);
        case GELU: return 0.5f * x * (1.f + erff(0.70710678f * x));
        case RELU: return x > 0.f ? x : 0.f;
        case SIGN: return x > 0.f ? 1.f : x < 0.f ? -1.f : 0.f;
        case STEP: return x > 0.f ? 1.f : 0.f;
        case FLOOR: return floorf(x);
        case AFFINE: return fmaf(x, a, b);
        case CLAMP: return x < a ? a : x > b ? b : x;
    }
    return x;
}

// One pack per thread.
template <class T>
__device__ void unary(T* y, const T* x, int64_t n, int f, float a, float b) {
    int64_t at = first_element<T>();
    if (at >= n) return;
    Pack<T> pack = load_pack(x, at, n);
#pragma unroll
    for (int i = 0; i < Pack<T>::WIDTH; ++i) pack.v[i] = store<T>(apply((Function)f, load(pack.v[i]), a, b));
    store_pack(y, at, n, pack);
}

extern "C" __global__ void unary_f32(float* y, const float* x, int64_t n, int f, float a, float b) {
    unary(y, x, n, f, a, b);
}
extern "C" __global__ void unary_bf16(bf16* y, const bf16* x, int64_t n, int f, float a, float b) {
    unary(y, x, n, f, a, b);
}
extern "C" __global__ void unary_f16(f16* y, const f16* x, int64_t n, int f, float a, float b) {
    unary(y, x, n, f, a, b);
}
