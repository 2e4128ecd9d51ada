#!/usr/bin/env bash
# Everything that needs a GPU, in one command: the tests on the device (bit for bit against the CPU),
# compute-sanitizer on a few of them, then the benchmarks. Writes benchmarks/results/gpu/<date>/:
# machine.txt, the logs, and benchmarks.json (pytest-benchmark's raw numbers).
#
#   benchmarks/gpu.sh [folder for the results]
#
# Needs nvcc, a driver, and Python with torch, triton, pybind11, setuptools, numpy, pytest and
# pytest-benchmark. Uses no network. Builds in place. PYTHON names the interpreter (python3).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
results=$(realpath -m "${1:-benchmarks/results/gpu/$(date -u +%Y-%m-%dT%H%MZ)}")
mkdir -p "$results"

for module in torch triton pybind11 setuptools numpy pytest pytest_benchmark; do
    "$python" -c "import $module" || { echo "gpu.sh needs the Python package $module" >&2; exit 2; }
done
capability=$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())') ||
    { echo "gpu.sh needs a CUDA device that torch can use" >&2; exit 2; }

{
    date -u +%Y-%m-%dT%H:%MZ
    git rev-parse HEAD 2>/dev/null || true
    uname -srm
    grep -m1 'model name' /proc/cpuinfo || true
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv || true
    nvcc --version | tail -2
    "$python" -c 'import sys, torch, triton
print("python", sys.version.split()[0], "torch", torch.__version__, "triton", triton.__version__)'
} | tee "$results/machine.txt"

# This device's machine code alone: the wheel's whole list takes minutes.
MDCP_CUDA=1 TORCH_CUDA_ARCH_LIST="$capability+PTX" "$python" setup.py build_ext --inplace \
    >"$results/build.log" 2>&1 || { tail -20 "$results/build.log" >&2; exit 1; }

export MDCP_REQUIRE_CUDA=1
status=0
"$python" -m pytest tests/ops/test_on_device.py -m needs_cuda -rs -p no:cacheprovider \
    2>&1 | tee "$results/tests.log" || status=1

# On cases small enough for a tool that slows a kernel a hundredfold. Without torch's cache every tensor is an allocation
# of its own, so that a step beside one is seen.
small='written_out_example or ties or all_points_equal or one_point or single_run or nothing or ward_seeds_are_better
    or far_beyond_the_points or as_many_clusters_as_distinct or seeds_of_a_smaller_k'
small=$(echo $small)
if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck initcheck racecheck synccheck; do
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 9 --target-processes all \
            "$python" -m pytest tests/ops/test_on_device.py -m needs_cuda -q -p no:cacheprovider \
            -k "$small" 2>&1 | tee "$results/$tool.log" || status=1
    done
else
    echo "compute-sanitizer is not installed: not run" | tee "$results/memcheck.log"
fi

"$python" -m pytest benchmarks/device/bench_device.py --device cuda -p no:cacheprovider \
    --benchmark-json "$results/benchmarks.json" 2>&1 | tee "$results/benchmarks.log" || status=1

echo "results: $results (status $status)" | tee -a "$results/machine.txt"
exit $status
