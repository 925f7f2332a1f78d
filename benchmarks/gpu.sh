#!/usr/bin/env bash
# All that there is to do on a machine with a GPU, in under ten minutes: `make gpu`. Results go to OUTPUT (build/gpu).
#
# PYTHON is one that has torch. The package and what it imports are installed beside it, from WHEELS (build/wheels, which `make wheels`
# fills on a machine with a network), or, where that is not there, built here. Needs no network then.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
wheels=${WHEELS:-build/wheels}
output=${OUTPUT:-build/gpu}
site=$PWD/build/gpu-site
mkdir -p "$output"
rm -rf "$site"
if ls "$wheels"/pyendor-*.whl >/dev/null 2>&1; then
    # Only what this Python has not got, and the package itself.
    missing=()
    for wheel in "$wheels"/*.whl; do
        name=$(basename "$wheel" | cut -d- -f1)
        if [ "$name" = pyendor ] || ! "$python" -m pip show -q "${name//_/-}" >/dev/null 2>&1; then missing+=("$wheel"); fi
    done
    "$python" -m pip install -q --no-index --no-deps --target "$site" "${missing[@]}"
else
    "$python" -m pip install -q --target "$site" --no-deps .
    "$python" -m pip install -q --target "$site" cffi pytest hypothesis jsonschema
fi
export PYTHONPATH="$site" PYTHONUNBUFFERED=1 PYTHONSAFEPATH=
# -P: the package is the installed one, not the folder of its sources, which has no compiled module.
pytest=("$python" -P -m pytest -p no:cacheprovider -o addopts= -q -m cuda -ra)
status=0

echo "== tests"
"${pytest[@]}" tests/test_gpu.py 2>&1 | tee "$output/tests.txt" || status=1

sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || true)
for tool in memcheck racecheck; do
    echo "== $tool"
    if [ -z "$sanitizer" ]; then
        echo "compute-sanitizer is not here" | tee "$output/$tool.txt"
        continue
    fi
    # Every tensor an allocation of its own, so that what lies beyond its end is seen.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout 150 "$sanitizer" --tool "$tool" --error-exitcode 1 \
        --kernel-regex kns=endor_decode "${pytest[@]}" -k sanitized tests/test_gpu.py 2>&1 | tee "$output/$tool.txt" || status=1
done

echo "== benchmarks"
timeout 330 "$python" benchmarks/gpu.py -o "$output/cuda.json" 2>&1 | tee "$output/cuda.txt" || status=1
echo "results: $output; to keep them: mkdir -p benchmarks/results/cuda && cp $output/cuda.json benchmarks/results/cuda/DEVICE.json && python benchmarks/table.py"
exit $status
