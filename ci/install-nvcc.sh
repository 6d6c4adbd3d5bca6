#!/usr/bin/env bash
# nvcc 13.0 and the SASS reading tools from PyPI into $1 (default: target/cuda-13.0), for machines without a CUDA
# toolkit. Prints the CUDA_HOME to build with. Needs python3 with pip, and g++ up to 15.
#   export CUDA_HOME=$(ci/install-nvcc.sh) && cargo build --release --features cuda
set -euo pipefail
dir=${1:-target/cuda-13.0}
home=$dir/nvidia/cu13
if ! "$home/bin/nvcc" --version 2>/dev/null | grep -q 'release 13.0' || ! [ -x "$home/bin/nvdisasm" ]; then
  python3 -m pip install -q --no-deps --only-binary=:all: --no-compile --target "$dir" --upgrade \
    nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96 \
    nvidia-cuda-cccl==13.0.85 nvidia-cuda-cuobjdump==13.2.51 nvidia-cuda-nvdisasm==13.2.51 1>&2
fi
(cd "$home" && pwd)
