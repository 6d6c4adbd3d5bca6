#!/usr/bin/env bash
# The emulated kernel tests under a sanitizer: `ci/sanitize.sh address` names reads and writes outside of tensors, shared
# and local memory with the line of the .cu file; `ci/sanitize.sh thread` names accesses that no barrier orders.
set -euo pipefail
cd "$(dirname "$0")/.."
kind=${1:?address or thread}
export SURPRISAL_SANITIZE=$kind
export CARGO_TARGET_DIR=target/sanitize-$kind
# One thread: the sanitizers do not see Rust's own synchronisation.
export RAYON_NUM_THREADS=1 ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0 TSAN_OPTIONS=halt_on_error=1
case $kind in
  address) runtime=libasan.so ;;
  thread) runtime=libtsan.so ;;
  *) echo "expected address or thread, got $kind"; exit 2 ;;
esac
binary=$(cargo test --release --features emulate --test kernels --no-run --message-format=json |
  sed -n 's/.*"executable":"\([^"]*kernels-[^"]*\)".*/\1/p' | tail -1)
LD_PRELOAD=$("${CXX:-g++}" -print-file-name=$runtime) "$binary" --test-threads=1
