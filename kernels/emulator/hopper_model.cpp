// Runs kernels/matmul_sm90a.cu on the model of hopper_model.h: ragged products of every orientation against f64.
#define HOPPER_MODEL
#include "hopper_model.h"
#include <random>
#include <thread>
#include <vector>
#undef threadIdx
#undef blockIdx
#undef __syncthreads
#undef DYN_SHARED
#define threadIdx hopper_model::thread_number
#define blockIdx hopper_model::block_number
#define __syncthreads() hopper_model::block->all.arrive_and_wait()
#define DYN_SHARED(T, name) T* name = reinterpret_cast<T*>(hopper_model::block->shared + hopper_model::Block::FIRST)
#include "../matmul_sm90a.cu"

namespace hopper_model {
Block* block;
thread_local uint3 thread_number;
uint3 block_number;
void wrong(const char* what) {
    printf("%s\n", what);
    fflush(stdout);
    _Exit(1);
}

template <class T>
using Entry = void (*)(T*, const T*, TensorMap, TensorMap, Product);

// The largest error of act(op(A) op(B) + bias) with a relu, relative to 1 + |exact|.
template <class T>
double error(Entry<T> kernel, int64_t m, int64_t n, int64_t k, bool ta, bool tb, unsigned batch) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    const auto made = [&](int64_t count) {
        std::vector<T> v((size_t)count);
        for (T& x : v) x = store<T>(normal(random));
        return v;
    };
    const std::vector<T> a = made(batch * m * k), b = made(batch * k * n), bias = made(n);
    std::vector<T> c((size_t)(batch * m * n), store<T>(NAN));
    const auto words = [](const std::vector<T>& v) { return reinterpret_cast<const uint16_t*>(v.data()); };
    const Map of_a = {words(a), {ta ? m : k, ta ? k : m, batch}, ta ? 64u : 128u};
    const Map of_b = {words(b), {tb ? k : n, tb ? n : k, batch}, tb ? 256u : 64u};
    TensorMap map_a = {}, map_b = {};
    memcpy(&map_a, &of_a, sizeof of_a);
    memcpy(&map_b, &of_b, sizeof of_b);
    const Product p = {m, n, k, m * k, k * n, ta, tb, RELU, 0};
    const auto tiles = (unsigned)((m + 127) / 128 * ((n + 255) / 256));
    for (unsigned i = 0; i < batch * tiles; ++i) {
        const auto fresh = std::make_unique<Block>();
        block = fresh.get();
        block_number = {i % tiles, 0, i / tiles};
        memset(block->shared, 0xff, sizeof block->shared);
        for (auto& warp : block->warps) warp = std::make_unique<std::barrier<>>(32);
        std::vector<std::thread> threads;
        for (unsigned t = 0; t < 384; ++t)
            threads.emplace_back([&, t] {
                thread_number = {t, 0, 0};
                kernel(c.data(), bias.data(), map_a, map_b, p);
            });
        for (std::thread& t : threads) t.join();
    }
    double worst = 0;
    for (int64_t i = 0; i < batch * m * n; ++i) {
        const int64_t z = i / (m * n), row = i / n % m, column = i % n;
        double sum = load(bias[column]);
        for (int64_t q = 0; q < k; ++q)
            sum += (double)load(a[z * m * k + (ta ? q * m + row : row * k + q)]) *
                   load(b[z * k * n + (tb ? column * k + q : q * n + column)]);
        sum = sum > 0 ? sum : 0;
        const double off = fabs(load(c[i]) - sum) / (1 + sum);
        if (!(off <= worst)) worst = off;
    }
    return worst;
}
}  // namespace hopper_model

int main() {
    // Half a rounding of the result.
    constexpr double BF16 = 1. / 256, F16 = 1. / 2048;
    int failed = 0;
    const auto see = [&](const char* name, double off, double allowed) {
        printf("%s: off by %.2g, allowed %.2g\n", name, off, allowed);
        failed += !(off <= allowed);
    };
    for (int way = 0; way < 4; ++way) {
        const bool ta = way & 1, tb = way & 2;
        printf("A %s, B %s\n", ta ? "transposed" : "plain", tb ? "transposed" : "plain");
        see("bf16 128 x 256 x 64", hopper_model::error<bf16>(matmul_wgmma_bf16, 128, 256, 64, ta, tb, 1), BF16);
        see("bf16 200 x 264 x 584", hopper_model::error<bf16>(matmul_wgmma_bf16, 200, 264, 584, ta, tb, 1), BF16);
        see("f16 two of 72 x 40 x 136", hopper_model::error<f16>(matmul_wgmma_f16, 72, 40, 136, ta, tb, 2), F16);
    }
    return failed > 0;
}
