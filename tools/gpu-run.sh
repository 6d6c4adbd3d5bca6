#!/usr/bin/env bash
# On a GPU machine, in the folder that tools/pack-gpu.sh made:
#   ./run.sh [STAGE ...]       stages: tests sanitizer benches compare pixelcnn_pp glow report; all of them by default
# Every stage ends within 10 minutes and writes to results/; a training that needs longer is saved, and goes on when its
# stage runs again. The exit code is the number of stages that failed.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here"
program=$here/bin/surprisal
data=$here/data
export REQUIRE_GPU=1 RUST_BACKTRACE=1 SURPRISAL_BIN=$program
limit=580

# One line where there is no driver, no GPU, or too old a driver.
"$program" bench glow28 --seconds 0 --device cuda --quiet >/dev/null || exit 1
mkdir -p results
{
  date -u +%FT%TZ
  echo "commit $(cat commit.txt)"
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null
} | tee results/machine.txt

within() { timeout -s INT -k 15 "$limit" "$@"; }

# Each executable of a kind, in a copy of the repository's files.
each() {
  local kind=$1 failed=0 name
  shift
  while read -r name; do
    echo "=== $name"
    (cd tree && timeout -k 15 "$limit" "$here/bin/$name" "$@") || { failed=$((failed + 1)); echo "FAILED $name"; }
  done < <(sed -n "s/^$kind //p" list.txt)
  echo "=== $failed executables failed"
  return $((failed > 0))
}

# The program is trained to its last step; a stage that ran out of time goes on next time.
train() {
  local dir=results/$1
  shift
  if [ -e "$dir/done" ]; then return 0; fi
  if [ -e "$dir/optimiser.safetensors" ]; then
    within "$program" train --resume "$dir" --data "$images/train-images-idx3-ubyte.gz" --device cuda "$@" || return 1
  else
    within "$program" train "$model" "${settings[@]}" --out "$dir" --data "$images/train-images-idx3-ubyte.gz" --device cuda "$@" || return 1
  fi
  touch "$dir/done"
}
images=$data/fashion_mnist

stage() {
  case $1 in
    tests) each test --test-threads=1 ;;
    sanitizer)
      command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer is not installed"; return 1; }
      (cd tree && timeout -k 15 "$limit" compute-sanitizer --error-exitcode 9 "$here/bin/test-kernels" --test-threads=1 in_f32) &&
        (cd tree && timeout -k 15 "$limit" compute-sanitizer --tool racecheck --error-exitcode 9 "$here/bin/test-kernels" --test-threads=1 in_bf16)
      ;;
    benches)
      # The ceiling of matrix products is cuBLAS, where PyTorch is there to ask.
      SURPRISAL_BF16_TFLOPS=$(python3 - <<'PY' 2>/dev/null
import time, torch
n = 8192
a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in "ab")
best = 1e9
for _ in range(10):
    torch.cuda.synchronize(); t = time.perf_counter()
    for _ in range(5): a @ b
    torch.cuda.synchronize(); best = min(best, (time.perf_counter() - t) / 5)
print(2 * n**3 / best / 1e12)
PY
      )
      export SURPRISAL_BF16_TFLOPS
      [ -n "$SURPRISAL_BF16_TFLOPS" ] || unset SURPRISAL_BF16_TFLOPS
      (cd tree && within "$here/bin/bench-kernels" --bench)
      ;;
    compare)
      python3 -c 'import torch' 2>/dev/null || { echo "no PyTorch here to compare with"; return 1; }
      for scale in 1 8; do
        within python3 bench/compare.py --bin "$program" --device cuda --amp bf16 --compile --seconds 2 --batch-scale $scale
      done
      ;;
    # Ren et al. 2019: 32 filters, 5 residual blocks, 1 logistic, batch 32, Adam 1e-4, 50,000 steps.
    pixelcnn_pp)
      model=pixelcnn_pp28
      settings=(--set depth=5 --set components=1 --set train.batch=32 --set train.lr=1e-4 --set train.steps=50000)
      settings+=(--set train.checkpoint_every=2000 --amp bf16)
      train pixelcnn_pp && train pixelcnn_pp-background --background
      ;;
    glow)
      model=glow28
      settings=(--set depth=16 --set hidden=128 --set train.epochs=100 --set train.checkpoint_every=2000 --amp bf16)
      train glow
      ;;
    report)
      for name in pixelcnn_pp glow; do
        [ -e "results/$name/done" ] || { echo "$name is not trained yet: run its stage again"; return 1; }
        background=()
        [ -e "results/$name-background/done" ] && background=(--background "results/$name-background/model.safetensors")
        within "$program" eval "results/$name" "${background[@]}" --reference "$images/t10k-images-idx3-ubyte.gz" \
          --other "$data/mnist/t10k-images-idx3-ubyte.gz" --other "$data/omniglot/omniglot28-images-idx3-ubyte.gz" \
          --out "results/$name-report" --device cuda || return 1
      done
      ;;
    *) echo "no stage $1: tests sanitizer benches compare pixelcnn_pp glow report"; return 1 ;;
  esac
}

[ $# -gt 0 ] || set -- tests sanitizer benches compare pixelcnn_pp glow report
failed=0
for name in "$@"; do
  echo "##### $name"
  stage "$name" > >(tee "results/$name.txt") 2>&1 || { failed=$((failed + 1)); echo "##### $name FAILED"; }
done
exit $failed
