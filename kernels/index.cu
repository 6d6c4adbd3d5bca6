// Gathers and scatters by integer indices, and running sums. An index outside its range gives NaN (gathers)
// or nothing (scatters): the host cannot look at indices without waiting for the device. Bytes: one read, one
// write per element of the result; flops: 1 per element that is added. scatter_rows reads all indices once per row of the table, so that every
// sum has a fixed order without atomics. Bound: memory.
#include "elem.cuh"

// y (indices, row) = rows of table (n, row).
template <class T>
__device__ void gather_rows(T* y, const T* table, const int* indices, int64_t count, int64_t row, int n) {
    int64_t at = global_thread();
    if (at >= count * row) return;
    int k = indices[at / row];
    y[at] = k >= 0 && k < n ? table[k * row + at % row] : store<T>(NAN);
}

// y (n, row): row k is the sum of the rows of x with index k. One thread per element of y.
template <class T>
__device__ void scatter_rows(T* y, const T* x, const int* indices, int64_t count, int64_t row, int n) {
    int64_t at = global_thread();
    if (at >= n * row) return;
    int64_t k = at / row, column = at % row;
    float sum = 0.f;
    for (int64_t i = 0; i < count; ++i)
        if (indices[i] == k) sum += load(x[i * row + column]);
    y[at] = store<T>(sum);
}

// y (rows) = x (rows, k) at one index per row.
template <class T>
__device__ void pick(T* y, const T* x, const int* indices, int64_t rows, int k) {
    int64_t r = global_thread();
    if (r >= rows) return;
    int i = indices[r];
    y[r] = i >= 0 && i < k ? x[r * k + i] : store<T>(NAN);
}

// The adjoint: zeros (rows, k) with x at one index per row; ones where x is null (one-hot codes).
template <class T>
__device__ void place(T* y, const T* x, const int* indices, int64_t rows, int k) {
    int64_t at = global_thread();
    if (at >= rows * k) return;
    int64_t r = at / k;
    y[at] = at % k != indices[r] ? store<T>(0.f) : x ? x[r] : store<T>(1.f);
}

// Columns of y (rows, k) = columns `order` of x.
template <class T>
__device__ void reorder(T* y, const T* x, const int* order, int64_t n, int k) {
    int64_t at = global_thread();
    if (at < n) y[at] = x[at / k * k + order[at % k]];
}

// Running sums of rows of k; from the end when `reverse`. One thread per row.
template <class T>
__device__ void cumsum(T* y, const T* x, int64_t rows, int64_t k, int reverse) {
    int64_t r = global_thread();
    if (r >= rows) return;
    float sum = 0.f;
    for (int64_t j = 0; j < k; ++j) {
        int64_t at = r * k + (reverse ? k - 1 - j : j);
        sum += load(x[at]);
        y[at] = store<T>(sum);
    }
}

extern "C" __global__ void gather_rows_f32(float* y, const float* table, const int* indices, int64_t count,
                                           int64_t row, int n) {
    gather_rows(y, table, indices, count, row, n);
}
extern "C" __global__ void gather_rows_bf16(bf16* y, const bf16* table, const int* indices, int64_t count,
                                            int64_t row, int n) {
    gather_rows(y, table, indices, count, row, n);
}
extern "C" __global__ void gather_rows_f16(f16* y, const f16* table, const int* indices, int64_t count,
                                           int64_t row, int n) {
    gather_rows(y, table, indices, count, row, n);
}
extern "C" __global__ void scatter_rows_f32(float* y, const float* x, const int* indices, int64_t count,
                                            int64_t row, int n) {
    scatter_rows(y, x, indices, count, row, n);
}
extern "C" __global__ void scatter_rows_bf16(bf16* y, const bf16* x, const int* indices, int64_t count,
                                             int64_t row, int n) {
    scatter_rows(y, x, indices, count, row, n);
}
extern "C" __global__ void scatter_rows_f16(f16* y, const f16* x, const int* indices, int64_t count,
                                            int64_t row, int n) {
    scatter_rows(y, x, indices, count, row, n);
}
extern "C" __global__ void pick_f32(float* y, const float* x, const int* indices, int64_t rows, int k) {
    pick(y, x, indices, rows, k);
}
extern "C" __global__ void pick_bf16(bf16* y, const bf16* x, const int* indices, int64_t rows, int k) {
    pick(y, x, indices, rows, k);
}
extern "C" __global__ void pick_f16(f16* y, const f16* x, const int* indices, int64_t rows, int k) {
    pick(y, x, indices, rows, k);
}
extern "C" __global__ void place_f32(float* y, const float* x, const int* indices, int64_t rows, int k) {
    place(y, x, indices, rows, k);
}
extern "C" __global__ void place_bf16(bf16* y, const bf16* x, const int* indices, int64_t rows, int k) {
    place(y, x, indices, rows, k);
}
extern "C" __global__ void place_f16(f16* y, const f16* x, const int* indices, int64_t rows, int k) {
    place(y, x, indices, rows, k);
}
extern "C" __global__ void cumsum_f32(float* y, const float* x, int64_t rows, int64_t k, int reverse) {
    cumsum(y, x, rows, k, reverse);
}
extern "C" __global__ void cumsum_bf16(bf16* y, const bf16* x, int64_t rows, int64_t k, int reverse) {
    cumsum(y, x, rows, k, reverse);
}
extern "C" __global__ void cumsum_f16(f16* y, const f16* x, int64_t rows, int64_t k, int reverse) {
    cumsum(y, x, rows, k, reverse);
}
extern "C" __global__ void reorder_f32(float* y, const float* x, const int* order, int64_t n, int k) {
    reorder(y, x, order, n, k);
}
extern "C" __global__ void reorder_bf16(bf16* y, const bf16* x, const int* order, int64_t n, int k) {
    reorder(y, x, order, n, k);
}
extern "C" __global__ void reorder_f16(f16* y, const f16* x, const int* order, int64_t n, int k) {
    reorder(y, x, order, n, k);
}
