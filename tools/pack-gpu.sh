#!/usr/bin/env bash
# Gathers in target/gpu-pack/ what a GPU machine without a Rust toolchain needs: the program, the tests and the bench that use a
# device, with the CUDA kernels, stripped; the scripts that compare with PyTorch; the images of the full-size runs; and
# run.sh (tools/gpu-run.sh), which runs all of it. What needs no GPU is tested where this is built.
#   tools/pack-gpu.sh && rsync -a target/gpu-pack/ gpu: && ssh gpu ./run.sh
# SHARED (default ../shared) holds bench/ and data/; without it the comparison and the full-size runs are left out.
# SURPRISAL_CUDA_ARCHS=90a makes the pack smaller for one kind of GPU. FEATURES (default cuda): what is built.
set -euo pipefail
cd "$(dirname "$0")/.."
out=target/gpu-pack
shared=${SHARED:-../shared}
rm -rf "$out"
mkdir -p "$out/bin"
build() { cargo "$@" --features "${FEATURES:-cuda}" --message-format=json-render-diagnostics; }
{ build build --release; build test --release --no-run --test kernels --test devices --test device_judges; build bench --no-run --bench kernels; } | python3 -c '
import json, os, shutil, sys
out, seen, rows = sys.argv[1], set(), []
for line in sys.stdin:
    m = json.loads(line)
    path = m.get("executable")
    if m.get("reason") != "compiler-artifact" or not path or path in seen:
        continue
    seen.add(path)
    target = m["target"]
    kind = "bench" if "bench" in target["kind"] else "test" if m["profile"]["test"] else "program"
    name = "surprisal" if kind == "program" else kind + "-" + target["name"]
    shutil.copy2(path, out + "/bin/" + name)
    rows.append(kind + " " + name + "\n")
open(out + "/list.txt", "w").writelines(sorted(set(rows)))' "$out"
strip --strip-all "$out"/bin/*
cp tools/gpu-run.sh "$out/run.sh"
git rev-parse HEAD > "$out/commit.txt" 2>/dev/null || echo unknown > "$out/commit.txt"
if [ -d "$shared/bench" ]; then
  mkdir -p "$out/bench"
  cp "$shared"/bench/compare.py "$shared"/bench/torch_ref.py "$out/bench/"
fi
for set in fashion_mnist mnist omniglot; do
  [ -d "$shared/data/$set" ] || continue
  mkdir -p "$out/data/$set"
  case $set in
    fashion_mnist) cp "$shared/data/$set"/*images*.gz "$out/data/$set/" ;;
    mnist) cp "$shared/data/$set"/t10k-images*.gz "$out/data/$set/" ;;
    omniglot) cp "$shared/data/$set"/*images*.gz "$out/data/$set/" ;;
  esac
done
chmod -R u+w "$out"
# Without a GPU the pack must say so in one line.
if message=$("$out/run.sh" 2>&1); then
  echo "$message" | head -3
else
  echo "run.sh here: $message"
fi
du -sh "$out"
