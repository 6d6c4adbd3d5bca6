#!/usr/bin/env bash
# A second compiler with warnings over every kernels/*.cu, nothing built: as code of the host, as the emulator runs it, and, where
# CUDA_HOME has the toolkit's headers (ci/install-nvcc.sh), as device code of compute capability 8.0. Warnings are errors.
set -euo pipefail
cd "$(dirname "$0")/.."
clang=${CLANGXX:-}
for name in clang++ clang++-{22,21,20,19,18,17,16,15,14}; do
  [ -n "$clang" ] || clang=$(command -v "$name" || true)
done
[ -n "$clang" ] || { echo "there is no clang++ in CLANGXX or PATH"; exit 1; }
warnings=(-std=c++17 -fsyntax-only -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -Werror -Wno-unknown-pragmas)
forms="as host code"
stubs=$(mktemp -d)
trap 'rm -rf "$stubs"' EXIT
if [ -n "${CUDA_HOME:-}" ] && [ -f "$CUDA_HOME/include/cuda_runtime.h" ]; then
  forms+=" and as device code"
  # Headers that clang's wrapper includes and CUDA 13 no longer has.
  touch "$stubs"/{texture_fetch_functions,texture_indirect_functions,surface_indirect_functions,curand_mtgp32_kernel}.h
  device=(-x cuda --cuda-device-only --cuda-gpu-arch=sm_80 "--cuda-path=$CUDA_HOME" -nocudalib -Wno-unknown-cuda-version
    -D__CLANG_CUDA_TEXTURE_INTRINSICS_H__ -isystem "$stubs" -Ikernels)
fi
for source in kernels/*.cu; do
  "$clang" "${warnings[@]}" -x c++ -Ikernels -isystem kernels/emulator "$source"
  [ -z "${device+set}" ] || "$clang" "${warnings[@]}" "${device[@]}" "$source"
done
printf '%s: %s kernel files, %s\n' "$("$clang" --version | head -1)" "$(ls kernels/*.cu | wc -l)" "$forms"
