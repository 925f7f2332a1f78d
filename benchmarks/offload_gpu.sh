#!/usr/bin/env bash
# Offloading on a machine with a GPU, in under ten minutes: `make gpu-offload`. What it needs, and where results go: gpu_common.sh.
#
# FOLDER is where the models are written: some 15 GB, on the disk that is to be measured.
needed=(cffi ml_dtypes xxhash typer rich safetensors pytest hypothesis transformers accelerate)
source "$(dirname "$0")/gpu_common.sh"

step "tests of offloading" 90 offload-tests.txt "${pytest[@]}" tests/test_offload_cuda.py

step offloading 480 offload.txt "$python" benchmarks/offload.py gpu -o "$output/offload.json" --folder "${FOLDER:-build/offload}"
echo "results: $output/offload.json; to keep them: python benchmarks/offload_table.py $output/offload.json DEVICE"
exit $status
