// What a product is: as `Product` in src/ops/matmul.rs.
#pragma once
#include <cstdint>

struct Product {
    int64_t m, n, k, a_batch, b_batch;
    int transpose_a, transpose_b, act, pad;
};
