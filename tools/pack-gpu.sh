#!/usr/bin/env bash
# Builds every test and bench executable with the CUDA kernels, strips them and gathers them in target/gpu-pack/ with a
# script to run there, for a GPU machine without a Rust toolchain: copy the folder, then `gpu-pack/run.sh test`.
# SURPRISAL_CUDA_ARCHS=90a makes the pack smaller for one kind of GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
out=target/gpu-pack
rm -rf "$out"
mkdir -p "$out/bin"
build() { cargo "$@" --no-run --features cuda --message-format=json-render-diagnostics; }
{ build test --release; build bench; } | python3 -c '
import json, shutil, sys
out, seen, rows = sys.argv[1], set(), []
for line in sys.stdin:
    m = json.loads(line)
    path = m.get("executable")
    if m.get("reason") != "compiler-artifact" or not path or path in seen:
        continue
    seen.add(path)
    target = m["target"]
    kind = "bench" if "bench" in target["kind"] else "test" if m["profile"]["test"] else "bin"
    unit = "-unit" if kind == "test" and "test" not in target["kind"] else ""
    name = kind + "-" + target["name"] + unit
    shutil.copy2(path, out + "/bin/" + name)
    rows.append(kind + " " + name + "\n")
open(out + "/list.txt", "w").writelines(sorted(rows))' "$out"
strip --strip-all "$out"/bin/*
cat > "$out/run.sh" <<'RUN'
#!/usr/bin/env bash
# run.sh [test|bench] [arguments of each executable]: exit code = number of executables that failed. Run it in a copy of
# the repository's data/ and kernels/ folders; REQUIRE_GPU=1 makes a test that finds no GPU fail.
what=${1:-test}
shift || true
here=$(cd "$(dirname "$0")" && pwd)
export REQUIRE_GPU=1 RUST_BACKTRACE=1
failed=0
while read -r kind name; do
  [ "$kind" = "$what" ] || continue
  echo "=== $name"
  case $kind in
    bench) "$here/bin/$name" --bench "$@" ;;
    test) "$here/bin/$name" --test-threads=1 "$@" ;;
  esac || { failed=$((failed + 1)); echo "FAILED $name"; }
done < "$here/list.txt"
echo "=== $failed executables failed"
exit $failed
RUN
chmod +x "$out/run.sh"
du -sh "$out"
