#!/usr/bin/env bash
# Runs kernels/matmul_sm90a.cu on a model of Hopper's copy engine, barriers and products on the CPU
# (kernels/emulator/hopper_model.h): ragged products of every orientation against f64. Needs g++ 11 or newer.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
"${CXX:-g++}" -std=c++20 -O2 -Wall -Wextra -Werror -Wno-psabi -Wno-unknown-pragmas -fno-strict-aliasing -Ikernels -Ikernels/emulator \
  -pthread -o "$out/model" kernels/emulator/{hopper_model,cuda_cpu,races}.cpp
"$out/model"
