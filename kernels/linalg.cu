// Inverse and log |det| of square matrices by LU factorisation with partial pivoting, in f64 (src/ops/linalg.rs), a block for
// each, whose shared memory holds it: n up to 98 for the inverse, 140 for the determinant. Meant for the channel matrices
// of flows and the Jacobians of short rows.
// Bytes: two passes over n^2 numbers; 2/3 n^3 flops for the factors, 2 n^3 for the inverse, n barriers each. Bound:
// latency; a launch and 3 n barriers, where the host would wait for the device and send the result back.
#include "elem.cuh"

namespace {

constexpr int THREADS = 256;

// Dynamic shared memory: n (n + 1) doubles, n ints, and for the inverse n^2 doubles more. Either result may be null.
template <class T>
__device__ void factor(T* inverse, T* log_det, const T* a, int n) {
    DYN_SHARED(double, lu);
    __shared__ double sizes[THREADS];
    __shared__ int rows[THREADS];
    const int pitch = n + 1, t = threadIdx.x;
    a += (int64_t)blockIdx.x * n * n;
    int* order = reinterpret_cast<int*>(lu + n * pitch);
    for (int i = t; i < n * n; i += THREADS) lu[i / n * pitch + i % n] = (double)load(a[i]);
    for (int i = t; i < n; i += THREADS) order[i] = i;
    __syncthreads();
    for (int k = 0; k < n; ++k) {
        // The largest of column k, the last of equals, as on the host.
        double most = -1.;
        int at = k;
        for (int i = k + t; i < n; i += THREADS) {
            const double size = fabs(lu[i * pitch + k]);
            if (size >= most) most = size, at = i;
        }
        sizes[t] = most, rows[t] = at;
        __syncthreads();
        for (int half = THREADS / 2; half > 0; half /= 2) {
            if (t < half) {
                const double other = sizes[t + half];
                if (other > sizes[t] || (other == sizes[t] && rows[t + half] > rows[t]))
                    sizes[t] = other, rows[t] = rows[t + half];
            }
            __syncthreads();
        }
        const int pivot = rows[0];
        if (pivot != k) {
            for (int j = t; j < n; j += THREADS) {
                const double above = lu[k * pitch + j];
                lu[k * pitch + j] = lu[pivot * pitch + j];
                lu[pivot * pitch + j] = above;
            }
            if (t == 0) {
                const int above = order[k];
                order[k] = order[pivot];
                order[pivot] = above;
            }
        }
        __syncthreads();
        const double top = lu[k * pitch + k];
        if (top != 0.) {
            for (int i = k + 1 + t; i < n; i += THREADS) lu[i * pitch + k] /= top;
            __syncthreads();
            const int rest = n - k - 1;
            for (int e = t; e < rest * rest; e += THREADS) {
                const int i = k + 1 + e / rest, j = k + 1 + e % rest;
                lu[i * pitch + j] -= lu[i * pitch + k] * lu[k * pitch + j];
            }
        }
        __syncthreads();
    }
    if (log_det && t == 0) {
        double sum = 0.;
        for (int k = 0; k < n; ++k) sum += log(fabs(lu[k * pitch + k]));
        log_det[blockIdx.x] = store<T>((float)sum);
    }
    if (!inverse) return;
    inverse += (int64_t)blockIdx.x * n * n;
    // Column `order[i]` of the inverse solves L U x = e_i: a thread per column, which runs down and up a column of
    // shared memory behind the factors; 2 n^2 flops each.
    for (int column = t; column < n; column += THREADS) {
        double* x = lu + n * pitch + (n + 1) / 2 + column;  // behind the order
        for (int i = 0; i < n; ++i) {
            double sum = i == column ? 1. : 0.;
            for (int k = column; k < i; ++k) sum -= lu[i * pitch + k] * x[k * n];
            x[i * n] = i < column ? 0. : sum;
        }
        for (int i = n - 1; i >= 0; --i) {
            double sum = x[i * n];
            for (int k = i + 1; k < n; ++k) sum -= lu[i * pitch + k] * x[k * n];
            x[i * n] = sum / lu[i * pitch + i];
        }
        for (int i = 0; i < n; ++i) inverse[i * n + order[column]] = store<T>((float)x[i * n]);
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(256) linalg_inverse_f32(float* inverse, const float* a, int n) {
    factor<float>(inverse, nullptr, a, n);
}
extern "C" __global__ void __launch_bounds__(256) linalg_inverse_bf16(bf16* inverse, const bf16* a, int n) {
    factor<bf16>(inverse, nullptr, a, n);
}
extern "C" __global__ void __launch_bounds__(256) linalg_inverse_f16(f16* inverse, const f16* a, int n) {
    factor<f16>(inverse, nullptr, a, n);
}

extern "C" __global__ void __launch_bounds__(256) linalg_log_det_f32(float* log_det, const float* a, int n) {
    factor<float>(nullptr, log_det, a, n);
}
extern "C" __global__ void __launch_bounds__(256) linalg_log_det_bf16(bf16* log_det, const bf16* a, int n) {
    factor<bf16>(nullptr, log_det, a, n);
}
extern "C" __global__ void __launch_bounds__(256) linalg_log_det_f16(f16* log_det, const f16* a, int n) {
    factor<f16>(nullptr, log_det, a, n);
}
