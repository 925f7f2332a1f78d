#!/usr/bin/env bash
# Offloading on a machine with a GPU, in under ten minutes: `make gpu-offload`, which `make gpu` does too. Results go to OUTPUT.
#
# PYTHON is one that has torch; what is missing besides comes from WHEELS (`make wheels`), or, where those are not there, from the network.
# FOLDER is where the models are written: some 15 GB, on the disk that is to be measured.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
wheels=${WHEELS:-build/wheels}
output=${OUTPUT:-build/gpu}
site=$PWD/build/gpu-site
mkdir -p "$output"
needed=(transformers accelerate)
if ! PYTHONPATH="$site" "$python" -P -c 'import pyendor, transformers, accelerate' 2>/dev/null; then
    if ls "$wheels"/pyendor-*.whl >/dev/null 2>&1; then
        missing=()
        for wheel in "$wheels"/*.whl; do
            name=$(basename "$wheel" | cut -d- -f1)
            if [ "$name" = pyendor ] || ! "$python" -m pip show -q "${name//_/-}" >/dev/null 2>&1; then missing+=("$wheel"); fi
        done
        "$python" -m pip install -q --upgrade --no-index --no-deps --target "$site" "${missing[@]}"
    else
        "$python" -m pip install -q --upgrade --target "$site" --no-deps .
        "$python" -m pip install -q "${needed[@]}"
    fi
fi
export PYTHONPATH="$site" PYTHONUNBUFFERED=1 PYTHONSAFEPATH= HF_HUB_OFFLINE=1
status=0

echo "== tests of offloading"
timeout 120 "$python" -P -m pytest -p no:cacheprovider -o addopts= -q -m cuda -ra tests/test_offload_cuda.py 2>&1 |
    tee "$output/offload-tests.txt" || status=1

echo "== offloading"
timeout 450 "$python" benchmarks/offload.py gpu -o "$output/offload.json" --folder "${FOLDER:-build/offload}" 2>&1 |
    tee "$output/offload.txt" || status=1
echo "results: $output/offload.json; to keep them: python benchmarks/offload_table.py $output/offload.json DEVICE"
exit $status
