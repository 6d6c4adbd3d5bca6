#!/usr/bin/env bash
# On a GPU machine, in the folder that tools/pack-gpu.sh made:
#   ./run.sh [STAGE ...]       stages: tests sanitizer benches compare pixelcnn_pp glow report; all of them by default
# Writes to RESULTS (default results/), ends after LIMIT seconds (default 570) whatever the stages, and goes on when it
# runs again: what was trained is saved. The exit code is the number of stages that failed or did not end in time.
# DEVICE (default cuda) is where everything runs; EXTRA holds further options of the trainings.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here"
program=$here/bin/surprisal
data=$here/data
results=${RESULTS:-results}
device=${DEVICE:-cuda}
deadline=$((SECONDS + ${LIMIT:-570}))
export REQUIRE_GPU=1 RUST_BACKTRACE=1 SURPRISAL_BIN=$program

# One line where there is no driver, no GPU, or too old a driver.
"$program" bench glow28 --seconds 0 --device "$device" --quiet >/dev/null || exit 1
mkdir -p "$results"
{
  date -u +%FT%TZ
  echo "commit $(cat commit.txt)"
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null
} | tee "$results/machine.txt"

# A command that is interrupted, and so saves what it has, when the time is up.
within() {
  local left=$((deadline - SECONDS))
  if [ "$left" -le 0 ]; then
    echo "no time is left for: ${*##*/}"
    return 124
  fi
  timeout -s INT -k 15 "$left" "$@"
}

# Each executable of a kind.
each() {
  local kind=$1 failed=0 name
  shift
  while read -r name; do
    echo "=== $name"
    within "$here/bin/$name" "$@" || { failed=$((failed + 1)); echo "FAILED $name"; }
  done < <(sed -n "s/^$kind //p" list.txt)
  echo "=== $failed executables failed"
  return $((failed > 0))
}

images=$data/fashion_mnist
training=$images/train-images-idx3-ubyte.gz

# Trains $model with ${settings[@]} to its last step.
train() {
  local dir=$results/$1
  shift
  if [ -e "$dir/done" ]; then return 0; fi
  if [ -e "$dir/optimiser.safetensors" ]; then
    within "$program" train --resume "$dir" --data "$training" --device "$device" || return 1
  else
    within "$program" train "$model" "${settings[@]}" "$@" --out "$dir" --data "$training" --device "$device" || return 1
  fi
  touch "$dir/done"
}

stage() {
  case $1 in
    tests) each test --test-threads=1 ;;
    sanitizer)
      command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer is not installed"; return 1; }
      within compute-sanitizer --error-exitcode 9 "$here/bin/test-kernels" --test-threads=1 in_f32 &&
        within compute-sanitizer --tool racecheck --error-exitcode 9 "$here/bin/test-kernels" --test-threads=1 in_bf16
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
      each bench --bench
      ;;
    compare)
      [ -e bench/compare.py ] || { echo "the pack was made without bench/"; return 1; }
      python3 -c 'import torch' 2>/dev/null || { echo "no PyTorch here to compare with"; return 1; }
      for scale in 1 8; do
        within python3 bench/compare.py --bin "$program" --device "$device" --amp bf16 --compile --seconds 2 --batch-scale $scale || return 1
      done
      ;;
    # Ren et al. 2019 and the parameters of their released models: 32 filters (the preset's), 5 residual blocks, 1 logistic,
    # batch 32, Adam with betas .95 and .9995 and a rate of 1e-4 that falls by .999995 a step, 50,000 steps; a tenth of the bytes
    # replaced for the background. The network differs: see src/models/autoregressive/pixelcnn_pp.rs.
    pixelcnn_pp)
      model=pixelcnn_pp28
      settings=(--set depth=5 --set components=1 --set train.batch=32 --set train.lr=1e-4 --set train.steps=50000)
      settings+=(--set "train.betas=[0.95, 0.9995]" --set train.schedule.curve=exponential)
      settings+=(--set train.schedule.rate=0.999995 --set train.schedule.every=1)
      settings+=(--set train.checkpoint_every=2000 --amp bf16 ${EXTRA:-})
      train pixelcnn_pp && train pixelcnn_pp-background --background --set train.mutation=0.1
      ;;
    glow)
      model=glow28
      settings=(--set depth=16 --set hidden=128 --set train.epochs=100 --set train.checkpoint_every=2000 --amp bf16 ${EXTRA:-})
      train glow
      ;;
    report)
      for name in pixelcnn_pp glow; do
        [ -e "$results/$name/done" ] || { echo "$name is not trained yet: run its stage again"; return 1; }
        background=()
        [ -e "$results/$name-background/done" ] && background=(--background "$results/$name-background/model.safetensors")
        within "$program" eval "$results/$name" "${background[@]}" --reference "$images/t10k-images-idx3-ubyte.gz" \
          --other "$data/mnist/t10k-images-idx3-ubyte.gz" --other "$data/omniglot/omniglot28-images-idx3-ubyte.gz" \
          --out "$results/$name-report" --device "$device" || return 1
      done
      ;;
    *) echo "no stage $1: tests sanitizer benches compare pixelcnn_pp glow report"; return 1 ;;
  esac
}

[ $# -gt 0 ] || set -- tests sanitizer benches compare pixelcnn_pp glow report
failed=0
for name in "$@"; do
  echo "##### $name"
  stage "$name" 2>&1 | tee "$results/$name.txt" || { failed=$((failed + 1)); echo "##### $name FAILED"; }
done
exit $failed
