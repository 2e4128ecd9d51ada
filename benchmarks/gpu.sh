#!/usr/bin/env bash
# Everything that needs a GPU in one command that ends within ten minutes, the facts worth most first:
# the machine, the build, the tests bit for bit against the CPU, the benchmarks of the ops and of k-means,
# the whole way from a network to a smaller one, then compute-sanitizer.
#
#   benchmarks/gpu.sh [--device cuda|cpu] [--only REGEX] [--wheels FOLDER] [--seconds N] FOLDER
#
# Every step has a time limit, and one that fails, crashes or hangs stops no other. Results appear in
# FOLDER as they come, in at most 8 files of at most 16 MiB; steps.txt says how every step ended.
#
#   --device cpu     checks that the command itself is whole: smallest sizes, no sanitizer
#   --only REGEX     the steps whose names match, with their whole limits; what FOLDER has stays
#   --wheels FOLDER  wheels to install for this run alone (peers to measure beside)
#   --seconds N      of the whole run, 560; the limits of the steps shrink along
#
# Needs Python with torch, numpy, pybind11, setuptools, pytest, pytest-benchmark and what pyproject.toml
# lists, and for cuda nvcc, triton and a driver. Uses no network. Builds in place. PYTHON names the
# interpreter (python3). Ends with 0 if all steps passed, 1 if not, 2 if it was called wrongly.
set -u
TOTAL=560            # seconds that the limits below are meant for
GRACE=10             # seconds from the interrupt to the kill of a step
MOST=$((4 << 20))    # bytes of a log's beginning and of its end that are kept
usage() { echo "usage: benchmarks/gpu.sh [--device cuda|cpu] [--only REGEX] [--wheels FOLDER] [--seconds N] FOLDER" >&2; exit 2; }

device=cuda seconds=$TOTAL only='' wheels='' out=''
while [ $# -gt 0 ]; do
    case $1 in
        --device) device=${2:-}; shift 2 || usage ;;
        --only) only=${2:-}; shift 2 || usage ;;
        --wheels) wheels=$(realpath -e "${2:-}") || usage; shift 2 ;;
        --seconds) seconds=${2:-}; shift 2 || usage ;;
        -*) usage ;;
        *) [ -z "$out" ] || usage; out=$1; shift ;;
    esac
done
case $device in cuda | cpu) ;; *) usage ;; esac
[ -n "$out" ] && [ "$seconds" -gt 0 ] 2>/dev/null || usage
mkdir -p "$out" && out=$(realpath "$out") || exit 2
cd "$(dirname "$0")/.." || exit 2
scale=$seconds
if [ -n "$only" ]; then scale=$TOTAL; else rm -f "$out"/{steps.txt,build.log,tests.log,bench.log,sanitizer.log,ops.json,kmeans.json,end_to_end.json}; fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python=${PYTHON:-python3}
failed=0
reserve=0 # seconds that a step leaves for later ones
SECONDS=0
export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} TRITON_CACHE_DIR=$scratch/triton

# Runs a command under a limit, its output in a log of $out, and notes how it ended. The interrupt lets
# pytest-benchmark write what it has; whoever called this in the background may have had it ignored.
step() { # NAME SECONDS LOG COMMAND...
    local name=$1 limit=$(($2 * scale / TOTAL)) log=$out/$3 start=$SECONDS left grace status how
    shift 3
    [ -z "$only" ] || [[ $name =~ $only ]] || return 0
    left=$((seconds - SECONDS - reserve * scale / TOTAL))
    if [ "$left" -lt 2 ]; then
        note "$name" "not begun: no time is left"
        return 1
    fi
    [ "$limit" -gt 1 ] || limit=1
    [ "$limit" -lt "$left" ] || limit=$left
    grace=$((GRACE * scale / TOTAL + 1))
    echo "== $name: $*" >>"$log"
    timeout --signal=INT --kill-after=$grace "$limit" env --default-signal=INT "$@" >>"$log" 2>&1 </dev/null
    status=$?
    case $status in
        0) how=passed ;;
        124) how="stopped at its limit" ;;
        137) how="killed" ;;
        *) [ $status -gt 128 ] && how="crashed ($(kill -l $status 2>/dev/null))" || how="failed ($status)" ;;
    esac
    note "$name" "$how after $((SECONDS - start)) s, limit $limit s"
    shorten "$log"
    rm -f "$out"/.*.part # of a file that a killed step was writing
    return $status
}

note() { # NAME HOW
    case $1:$2 in *:passed* | initcheck:*) ;; *) failed=1 ;; esac
    printf '%-22s %s\n' "$1:" "$2" | tee -a "$out/steps.txt"
}

shorten() { # LOG: its beginning and its end
    [ "$(stat -c %s "$1")" -gt $((2 * MOST)) ] || return 0
    { head -c $MOST "$1"; printf '\n[...]\n'; tail -c $MOST "$1"; } >"$scratch/short" && mv "$scratch/short" "$1"
}

ask() { timeout --kill-after=5 40 "$python" -c "$1" 2>/dev/null </dev/null; }
has() { ask "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)"; }
tests() { # NAME SECONDS ARGUMENTS...
    step "$1" "$2" tests.log env "OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}" "${pytest[@]}" "${hang[@]}" -v -rs \
        --durations=8 --maxfail=200 "${@:3}"
}
benchmark() { # NAME SECONDS JSON ARGUMENTS...
    step "$1" "$2" bench.log "${pytest[@]}" -o faulthandler_timeout=60 -v --device "$device" \
        --benchmark-json "$out/$3" "${@:4}" benchmarks/device/bench_device.py benchmarks/device/bench_peers.py
}

pytest=("$python" -m pytest -p no:cacheprovider)
parallel=()
hang=(-o faulthandler_timeout=45)
if [ -n "$wheels" ]; then
    step wheels 30 build.log "$python" -m pip install --quiet --no-index --no-deps --no-compile \
        --no-cache-dir --target "$scratch/wheels" "$wheels"/*.whl
    # Behind what the machine has: a wheel that was carried along takes no package's place.
    mkdir -p "$scratch/site"
    printf 'import sys\nsys.path.append("%s/wheels")\n' "$scratch" >"$scratch/site/sitecustomize.py"
    PYTHONPATH=$scratch/site:$PYTHONPATH
fi

step machine 60 steps.txt "$python" benchmarks/device/machine.py --device "$device"
if [ "$device" = cuda ]; then
    reserve=100 # for memcheck and racecheck
    export TORCHINDUCTOR_COMPILE_THREADS=4
    capability=$(ask 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')
    # This device's machine code alone: the wheel's whole list takes minutes.
    step build 130 build.log env MDCP_CUDA=1 TORCH_CUDA_ARCH_LIST="${capability:-9.0}+PTX" \
        "$python" setup.py build_ext --inplace || # what runs on the CPU and by Triton can still be measured
        step "build for the CPU" 60 build.log env MDCP_CUDA=0 "$python" setup.py build_ext --inplace
    export MDCP_REQUIRE_CUDA=1
    # A worker that a kernel's fault or hang takes along is replaced, and the log names the test.
    ! has xdist || parallel=(-n 8)
    ! has pytest_timeout || hang=(--timeout 60 --timeout-method thread)
    tests "tests of the ops" 110 tests/ops/test_on_device.py -m needs_cuda "${parallel[@]}"
    benchmark "benchmarks of the ops" 80 ops.json -k "not kmeans"
    benchmark "benchmarks of k-means" 70 kmeans.json -k kmeans
    step "end to end" 110 bench.log "$python" benchmarks/device/end_to_end.py --device cuda "$out/end_to_end.json"
    reserve=0
    # Small work that reaches every kernel. Without torch's cache each tensor is an allocation of its own, so that a
    # step beside one is seen. initcheck is told, but no gate: torch's own kernels trip it.
    sanitize() { # TOOL
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 step "$1" 50 sanitizer.log compute-sanitizer --tool "$1" --error-exitcode 9 \
            --target-processes all --print-limit 20 "${pytest[@]}" -v tests/ops/test_on_device.py \
            -m "needs_cuda and reaches_every_kernel"
    }
    sanitize memcheck
    sanitize racecheck
    tests "tests of the pipeline" 110 tests/test_pipeline_on_device.py -m needs_cuda "${parallel[@]}"
    sanitize initcheck
    sanitize synccheck
else
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    step build 130 build.log env MDCP_CUDA=0 "$python" setup.py build_ext --inplace
    tests "tests of the ops" 110 tests/ops/test_crowding_distance.py tests/ops/test_evaluate_population.py
    benchmark "benchmarks of the ops" 80 ops.json --quick -k "not kmeans"
    benchmark "benchmarks of k-means" 70 kmeans.json --quick -k kmeans
    step "end to end" 110 bench.log "$python" benchmarks/device/end_to_end.py --device cpu --quick "$out/end_to_end.json"
    tests "tests of the pipeline" 110 tests/test_pipeline_on_device.py -k "small"
fi

for log in build tests bench sanitizer; do
    [ ! -f "$out/$log.log" ] || { echo "-- $log.log"; tail -n 8 "$out/$log.log" | cut -c -200; }
done
echo "-- steps.txt, after $SECONDS s"
tail -n 40 "$out/steps.txt" | cut -c -200
exit $failed
