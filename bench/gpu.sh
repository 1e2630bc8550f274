#!/usr/bin/env bash
# One GPU, one command, at most ten minutes: build with nvcc for this GPU, test, sanitize, benchmark. What a step prints
# goes to $OUT/<step>.log; a failing step does not stop the others, but the exit status tells. --dry-run prints the steps.
#
# Needs the extras test and bench (pip install -c constraints.txt -e ".[test,bench]"), nvcc and compute-sanitizer.
# OUT: where everything goes, default bench/results/gpu-<name>. PYTHON: the interpreter. The benchmark measures what
# --quick does first, then the rest while there is time, and says what it left out; FULL=1 gives it an hour.
set -u
cd "$(dirname "$0")/.." || exit 2
dry=
case "${1:-}" in
  --dry-run) dry=1 ;;
  "") ;;
  *) echo "usage: bench/gpu.sh [--dry-run]" >&2 && exit 2 ;;
esac
python=${PYTHON:-python}
name=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1 | tr -cs 'A-Za-z0-9\n' '-')
out=${OUT:-bench/results/gpu-${name:-none}}
arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1)
[ "$arch" = 9.0 ] && arch=9.0a
export EQUIKERN_CUDA=1 EQUIKERN_REQUIRE_NATIVE=1 TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-$arch}"
failed=0
summary=()

# step NAME SECONDS COMMAND…
step() {
  local title=$1 limit=$2 start=$SECONDS status=0
  shift 2
  if [ -n "$dry" ]; then
    echo "$title: timeout $limit $*"
    return
  fi
  echo "=== $title"
  timeout "$limit" "$@" >"$out/$title.log" 2>&1 || status=$?
  [ "$status" = 0 ] || { failed=1 && tail -n 15 "$out/$title.log"; }
  summary+=("$title: $([ "$status" = 0 ] && echo passed || echo "FAILED ($status)"), $((SECONDS - start)) s")
}

if [ -z "$dry" ]; then
  mkdir -p "$out" || exit 2
fi
# A small run for the sanitizer, which slows kernels down by orders of magnitude: two small shapes, results checked.
small=("$python" -m pytest bench/ops --benchmark-disable -q -p no:cacheprovider --device cuda
  -k "(8x1280x7x7-float32 or 64x3x32x32-float32) and d4 and (both or selected) and (hot-triton or hot-cuda)")
step build 100 "$python" setup.py build_ext --inplace
step info 20 "$python" -m equikern info
# The kernels on the GPU; what the other tests check needs none.
step test 120 "$python" -m pytest python_tests/backends/cuda/test_cuda_gpu.py -q
for tool in memcheck racecheck initcheck; do
  # Without its caching, so that every access beyond a tensor is seen.
  step "$tool" 35 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
    compute-sanitizer --tool "$tool" --error-exitcode 9 --target-processes all "${small[@]}"
done
seconds=$([ -n "${FULL:-}" ] && echo 3600 || echo 190)
step bench $((seconds + 55)) "$python" -m equikern bench --force --device cuda --output "$out" --time-limit "$seconds"

if [ -z "$dry" ]; then
  printf '%s\n' "${summary[@]}" | tee "$out/summary.txt"
fi
exit "$failed"
