#!/usr/bin/env bash
# One call of less than ten minutes on one GPU: smoke, every operator's tests, sanitizers, bandwidth, ncu of the slowest.
#
#   bench/gpu/run.sh            everything; the summary goes to stdout, all logs to $OUT/all.tgz after every step
#   bench/gpu/run.sh --dry-run  prints the steps and their limits in seconds
#   DEVICE=cpu bench/gpu/run.sh rehearses it on a CPU: the plain torch kernels stand in for the GPU's
#
# Needs the extras test and bench (pip install -c constraints.txt -e ".[test,bench]"), compute-sanitizer and ncu. Where
# equikern._C is not built for this Python it is built first, which takes nvcc and a minute.
# OUT: where the archive goes, default bench/results/gpu. TOTAL: seconds in all, default 560. PYTHON: the interpreter.
# WORKERS: processes for the tests, default 14. TEST_FILES: for the proxy, default python_tests. TESTS_SECONDS,
# GPU_TESTS_SECONDS, SANITIZE_SECONDS, BANDWIDTH_SECONDS: limits of those steps.
set -u
case "${OUT:-}" in "" | /*) ;; *) OUT="$PWD/$OUT" ;; esac
cd "$(dirname "$0")/../.." || exit 2
dry=
case "${1:-}" in
  --dry-run) dry=1 ;;
  "") ;;
  *) echo "usage: bench/gpu/run.sh [--dry-run]" >&2 && exit 2 ;;
esac
python=${PYTHON:-python} device=${DEVICE:-cuda} out=${OUT:-bench/results/gpu} total=${TOTAL:-560}
tests=${TESTS_SECONDS:-220} gpu_tests=${GPU_TESTS_SECONDS:-90} sanitize=${SANITIZE_SECONDS:-60} bandwidth=${BANDWIDTH_SECONDS:-120}
workers=${WORKERS:-14} gpu_workers=$((${WORKERS:-14} < 4 ? ${WORKERS:-14} : 4))
work=$(mktemp -d)
logs="$work/logs"
mkdir -p "$logs"
trap 'rm -rf "$work"' EXIT
sanitizers=()
export PYTHONPATH="$PWD:$PWD/python_tests" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1
export TRITON_CACHE_DIR="$work/triton" # one for all processes: what one of them compiled the others find
export EQUIKERN_REQUIRE_NATIVE=1
[ "$device" = cuda ] || export PROXY_DEVICE=cpu PROXY_BACKEND="${PROXY_BACKEND:-reference}"
failed=0

say() { printf '[%3d s] %s\n' "$SECONDS" "$*" | tee -a "$logs/summary.txt"; }

# After every step: a run that is killed leaves what it has.
pack() {
  local part="$out/all.$BASHPID.part"
  mkdir -p "$out" && tar -C "$work" -czf "$part" logs 2>/dev/null
  mv "$part" "$out/all.tgz"
}

# step NAME SECONDS COMMAND…: at most so long, and no longer than there is time in all.
step() {
  local name=$1 limit=$2 start=$SECONDS status=0 left=$((total - SECONDS))
  shift 2
  if [ -n "$dry" ]; then
    echo "$name: $limit $*"
    return
  fi
  if [ "$left" -lt 10 ]; then
    say "$name: left out, the time is over"
    failed=1
    return 1
  fi
  [ "$limit" -lt "$left" ] || limit=$left
  timeout -k 5 "$limit" "$@" </dev/null >"$logs/$name.log" 2>&1 || status=$?
  [ "$status" = 0 ] || tail -n 4 "$logs/$name.log" | cut -c1-300
  say "$name: $([ "$status" = 0 ] && echo passed || echo "FAILED ($status)") in $((SECONDS - start)) s"
  pack
  return "$status"
}

# shown FILE PATTERN LINES: what the summary shows of a log.
shown() { [ -n "$dry" ] || grep -E "$2" "$logs/$1" 2>/dev/null | cut -c1-200 | head -n "$3" || true; }

"$python" -c "import equikern._C" 2>/dev/null || EQUIKERN_CUDA=1 step build 110 "$python" setup.py build_ext --inplace || failed=1
step info 60 "$python" -m equikern info || failed=1
if ! step smoke 90 "$python" -m bench.gpu.smoke "$device"; then
  say "smoke failed: nothing else is tried"
  tail -n 40 "$logs/smoke.log"
  exit 1
fi

plugin=(-p bench.gpu.proxy -p no:cacheprovider -p no:benchmark -q)
export FAILURES="$logs/failures.txt"
step tests "$tests" "$python" -m pytest "${plugin[@]}" -n "$workers" --dist worksteal --tb=short --maxfail=300 \
  --continue-on-collection-errors --junitxml="$logs/tests.xml" ${TEST_FILES:-python_tests} || failed=1
shown tests.log "passed|failed|kernel calls" 2
shown failures.txt . 40
step gpu_tests "$gpu_tests" env EQUIKERN_GPU="$device" "$python" -m pytest -p no:cacheprovider -p no:benchmark -q -n "$gpu_workers" \
  --tb=short --maxfail=50 python_tests/backends/cuda/test_cuda_{gpu,models,capture}.py || failed=1
shown gpu_tests.log "^FAILED|passed|failed" 30

# Both at once, one process each; memory of the tensors' own size and no caching, so that every access beyond is seen.
small=(python_tests/actions/test_{fields,matrices,volumes}.py python_tests/ops/test_softmax.py)
for tool in memcheck racecheck; do
  sanitizer=(compute-sanitizer --tool "$tool" --target-processes application-only --print-limit 20 --error-exitcode 9
    --kernel-regex kns=equikern)
  [ "$device" = cuda ] || sanitizer=()
  PROXY_EXACT=1 PROXY_EXAMPLES=1 PYTORCH_NO_CUDA_MEMORY_CACHING=1 step "$tool" "$sanitize" \
    ${sanitizer[@]+"${sanitizer[@]}"} "$python" -m pytest "${plugin[@]}" -x --tb=line "${small[@]}" &
  sanitizers+=("$!")
done
for process in "${sanitizers[@]}"; do wait "$process" || failed=1; done
for tool in memcheck racecheck; do shown "$tool.log" "Invalid|Race reported|Error:|ERROR SUMMARY|HAZARD" 8; done

step bandwidth $((bandwidth + 25)) "$python" -m bench.gpu.bandwidth "$logs/bandwidth.json" "$bandwidth" "$device" || failed=1
shown bandwidth.log "%|FAILED|cases in" 70

count=0
while IFS=$'\t' read -r name shape dtype group direction; do
  count=$((count + 1))
  profiler=(ncu --clock-control none --profile-from-start off --launch-count 1 -k regex:equikern --set full)
  [ "$device" = cuda ] || profiler=()
  step "ncu$count" 35 ${profiler[@]+"${profiler[@]}"} "$python" bench/profile/run.py "$name" "$shape" "$dtype" "$group" \
    --direction "$direction" --calls 1 --device "$device" || failed=1
  [ -n "$dry" ] || say "ncu$count is $name $direction of $group, $shape in $dtype"
  shown "ncu$count.log" "Duration|Throughput|Achieved Occ|Registers Per|Issue Slots|Executed Ipc|L2 Hit|Est. Speedup" 14
done < <([ -n "$dry" ] && printf 'SLOWEST\tB,C,H,W\tDTYPE\tGROUP\tDIRECTION\n%.0s' 1 2 3 || "$python" -m bench.gpu.worst "$logs/bandwidth.json" 3)

[ -n "$dry" ] || { say "all done"; pack; }
exit "$failed"
