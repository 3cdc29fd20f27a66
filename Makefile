# Everything runs in one virtual environment, .venv; stamp files in it say what is already done.
#   make demo [PHOTO=cat.jpg]     make test     make help

SHELL := bash

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CREATED := $(VENV)/.created
PINNED := $(VENV)/.pinned
INSTALLED := $(VENV)/.installed
PEERS := $(VENV)/.peers
WRITERS_VENV := .venv-bench
WRITERS := $(WRITERS_VENV)/.installed
BUILD_INPUTS := setup.py pyproject.toml MANIFEST.in $(wildcard build_tools/*.py) \
	$(shell find csrc kernels -type f -not -name '*.md' -not -name '*.py' -not -name '*.pyc')

# Two workers of one thread each; tests about threads ask torch for more themselves.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest
WORKERS ?= 2
SANITIZED := build/sanitize

# The CUDA kernels take nvcc minutes and no test needs the library: make FASTDW_CUDA=1 install.
export FASTDW_CUDA ?= 0

define PINNED_REQUIREMENTS
from pathlib import Path
try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib
project = tomllib.loads(Path("pyproject.toml").read_text())
print(*project["build-system"]["requires"], *project["project"]["optional-dependencies"]["pinned"])
endef
export PINNED_REQUIREMENTS

define SHIPPED_CAT
from fastdw.commands.photos import shipped_photos
print(next(path for path in shipped_photos() if "chelsea" in path.name))
endef
export SHIPPED_CAT

.DELETE_ON_ERROR:
.PHONY: help venv install demo test test-fast lint test-abi test-sanitize test-gpu-host test-large gpu-report bench bench-env readme clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(PINNED) ## .venv with the pinned torch (some GB the first time)
install: $(INSTALLED) ## .venv with fastdw built and installed, editable

$(CREATED):
	@echo "== virtual environment: $(VENV)"
	@command -v $(PYTHON) > /dev/null || { \
		echo "$(PYTHON) not found: install Python 3.10 or newer: sudo apt-get install python3 python3-venv"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "$$($(PYTHON) --version) is too old, 3.10 or newer is needed: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import venv' 2> /dev/null || { \
		echo "$(PYTHON) cannot make virtual environments: sudo apt-get install python3-venv"; exit 1; }
	@if $(PYTHON) -c 'import ensurepip' 2> /dev/null; then $(PYTHON) -m venv $(VENV); else \
		$(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install pip; fi
	@touch $@

$(PINNED): pyproject.toml $(CREATED)
	@echo "== torch, torchvision and build tools (pinned in pyproject.toml; the first download takes minutes)"
	@requirements=$$($(BIN)/python -c "$$PINNED_REQUIREMENTS") \
		&& echo "   $$requirements" \
		&& $(BIN)/python -m pip install --disable-pip-version-check $$requirements
	@touch $@

$(INSTALLED): $(PINNED) $(BUILD_INPUTS)
	@command -v $${CXX:-c++} > /dev/null || { \
		echo "no C++ compiler found: sudo apt-get install g++"; exit 1; }
	@echo "== fastdw: building the kernels (a first build takes some minutes)"
	@$(BIN)/python setup.py --quiet build_ext --inplace
	@echo "== fastdw: installing it, editable, and what its tests and its demo use"
	@$(BIN)/python -m pip install --disable-pip-version-check --no-build-isolation -e '.[dev]'
	@touch $@

demo: $(INSTALLED) ## classify, detect, segment: stock torch and fastdw side by side (PHOTO=cat.jpg adds one)
	@$(BIN)/fastdw demo $(if $(PHOTO),"$(PHOTO)")
	@photo=$$($(BIN)/python -c "$$SHIPPED_CAT") && for command in detect segment; do \
		echo "== fastdw $$command (where its weights cannot be had, a line says why)"; \
		$(BIN)/fastdw $$command "$$photo" --out build/demo-$$command.png || [ $$? -eq 2 ] || exit 1; \
	done

test: lint ## lint and all tests
	@echo "== tests"
	@$(PYTEST) -n $(WORKERS)

test-fast: $(INSTALLED) ## the tests that take less than three minutes together
	@$(PYTEST) -n $(WORKERS) -m "not slow"

lint: $(INSTALLED) ## ruff and mypy
	@echo "== lint"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

test-abi: $(CREATED) ## build under one torch, run under another (own environments, downloads)
	@echo "== stable ABI: build and run under different torches"
	@PYTHON=$(PYTHON) bash tests/abi/run.sh

test-sanitize: $(INSTALLED) ## the op tests once under AddressSanitizer and UBSan
	@PYTHON=$(BIN)/python bash tests/sanitize/run.sh $(SANITIZED)

test-gpu-host: $(INSTALLED) ## the CUDA kernels on the host, under AddressSanitizer and UBSan
	@PYTHON=$(BIN)/python bash tests/cuda_on_host/sanitize.sh

test-large: $(INSTALLED) ## tensors of more than 2^31 elements (a minute, 9 GB of memory)
	@$(PYTEST) tests/large_tensors.py

gpu-report: $(INSTALLED) ## what the GPU kernels need and move, without a GPU; into build/gpu_report
	@echo "== registers, shared memory, occupancy (nvcc, or NVIDIA's wheels)"
	@$(BIN)/python bench/gpu_resources.py
	@echo "== bytes moved, counted on the host"
	@$(BIN)/python bench/gpu_traffic.py --csv build/gpu_report/traffic.csv
	@echo "== Triton: registers, shared memory, tensor cores, compiled for six targets"
	@$(BIN)/python bench/triton_resources.py
	@echo "== Triton: bytes moved, counted in its interpreter"
	@$(BIN)/python bench/triton_traffic.py --csv build/gpu_report/triton_traffic.csv

bench: $(INSTALLED) ## time fastdw against what is installed; appends to bench/results/<device>/*.csv
	@$(BIN)/python bench/run_models.py

bench-env: $(PEERS) $(WRITERS) ## the peers of the benchmark, and TensorFlow and pnnx, which write their files

$(PEERS): pyproject.toml $(INSTALLED)
	@echo "== the runtimes that fastdw is timed against: pip install 'fastdw[bench]'"
	@requirements=$$($(BIN)/python -c "$$PINNED_REQUIREMENTS") \
		&& $(BIN)/python -m pip install --disable-pip-version-check --no-build-isolation \
			$$requirements -e '.[bench]'
	@touch $@

# An environment of their own: TensorFlow and torch need not agree about what they depend on. pnnx
# is a program inside a Python package whose functions want torch; only the program is used.
$(WRITERS): Makefile $(CREATED)
	@echo "== what writes the peers' model files: $(WRITERS_VENV) (TensorFlow: some 250 MB)"
	@$(PYTHON) -m venv --without-pip $(WRITERS_VENV)
	@install="$(BIN)/python -m pip --python $(WRITERS_VENV)/bin/python install"; \
		$$install --disable-pip-version-check tensorflow-cpu \
		&& $$install --disable-pip-version-check --no-deps pnnx
	@touch $@

readme: $(INSTALLED) ## write the generated tables of README.md
	@$(BIN)/python -m fastdw.benchmark.readme README.md

clean: ## remove what was built (.venv stays; rm -rf .venv removes that too)
	rm -rf build dist *.egg-info fastdw/_C.so fastdw/_C_cuda.so .pytest_cache .mypy_cache .ruff_cache .hypothesis $(INSTALLED)
	find fastdw tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
