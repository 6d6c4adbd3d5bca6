#!/usr/bin/env bash
# Whether the machine code has tensor-core instructions where a kernel file says so: a line with "SASS: NAME" (or NAME+NAME) in
# its head comment, for every kernel of the file that ends in _bf16, _f16 or _tf32, or "SASS: NAME in KERNEL, KERNEL" for these;
# files named *_sm90a have them there alone. Reads the fatbins of the last `cargo build --features cuda`; needs CUDA_HOME with
# cuobjdump and nvdisasm.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${CUDA_HOME:?set CUDA_HOME, for example to the output of ci/install-nvcc.sh}"
export PATH="$CUDA_HOME/bin:$PATH"
checked=0
for source in kernels/*.cu; do
  wanted=$(sed -n 's/^\/\/.*SASS: \([A-Z0-9+]*\).*/\1/p' "$source" | head -1)
  [ -n "$wanted" ] || continue
  kernels=$(sed -n 's/^\/\/.*SASS: [A-Z0-9+]* in \([a-z_, ]*\).*/\1/p' "$source" | head -1 | tr -d ' ' | tr ',' '|')
  name=$(basename "$source" .cu)
  fatbin=$(ls -t target/release/build/surprisal-*/out/"$name".fatbin 2>/dev/null | head -1 || true)
  [ -n "$fatbin" ] || { echo "$name.fatbin was not built: cargo build --release --features cuda"; exit 1; }
  archs="sm_80 sm_90a"
  [[ $name != *_sm90a ]] || archs=sm_90a
  for arch in $archs; do
    sass=$(cuobjdump -sass -arch "$arch" "$fatbin")
    for instruction in ${wanted//+/ }; do
      missing=$(awk -v wanted="$instruction" -v kernels="^(${kernels:-.*})_(b?f16|tf32)$" '
        /Function :/ { if (name ~ kernels && !found) print name; name = $3; found = 0 }
        index($0, wanted) { found = 1 }
        END { if (name ~ kernels && !found) print name }' <<<"$sass")
      [ -z "$missing" ] || { echo "$name ($arch): no $instruction in" $missing; exit 1; }
    done
  done
  echo "$name: $wanted in ${kernels:-all of them}, ${archs/ / and }"
  checked=$((checked + 1))
done
[ "$checked" -gt 0 ] || { echo "no kernel file asks for an instruction"; exit 1; }
