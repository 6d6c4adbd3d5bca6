#!/usr/bin/env bash
# The emulated kernel tests in a build that looks for faults in kernels, and names the line of the .cu file:
#   ci/sanitize.sh thread [FILTER ...]     accesses that no barrier orders (kernels/emulator/races.h)
#   ci/sanitize.sh address [FILTER ...]    reads and writes outside of tensors, shared and local memory (AddressSanitizer)
set -euo pipefail
cd "$(dirname "$0")/.."
kind=${1:?thread or address}
shift
export SURPRISAL_SANITIZE=$kind
binary=$(cargo test --release --features emulate --test kernels --no-run --message-format=json-render-diagnostics |
  sed -n 's/.*"executable":"\([^"]*kernels-[^"]*\)".*/\1/p' | tail -1)
case $kind in
  thread) "$binary" "$@" ;;
  address)
    # One thread: the sanitizer does not know the fibers of another.
    export RAYON_NUM_THREADS=1 ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0
    LD_PRELOAD=$("${CXX:-g++}" -print-file-name=libasan.so) "$binary" --test-threads=1 "$@"
    ;;
  *) echo "expected thread or address, got $kind"; exit 2 ;;
esac
