#!/usr/bin/env bash
# The CUDA decoder on a machine with a GPU, in under ten minutes: `make gpu`. What it needs, and where results go: gpu_common.sh.
needed=(cffi ml_dtypes xxhash typer rich safetensors pytest hypothesis)
source "$(dirname "$0")/gpu_common.sh"

step tests 90 tests.txt "${pytest[@]}" tests/test_gpu.py

sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || true)
for tool in memcheck racecheck; do
    if [ -z "$sanitizer" ]; then
        echo "== $tool: compute-sanitizer is not here" | tee "$output/$tool.txt"
        continue
    fi
    # Every tensor an allocation of its own, so that what lies beyond its end is seen.
    step "$tool" 90 "$tool.txt" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool "$tool" --error-exitcode 1 \
        --kernel-regex kns=endor_decode "${pytest[@]}" -k sanitized tests/test_gpu.py
done

step benchmarks 330 cuda.txt "$python" benchmarks/gpu.py -o "$output/cuda.json"
echo "results: $output; to keep them: mkdir -p benchmarks/results/cuda && cp $output/cuda.json benchmarks/results/cuda/DEVICE.json && python benchmarks/table.py"
exit $status
