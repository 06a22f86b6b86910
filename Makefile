# `make test` on a fresh machine: virtual environment, pinned packages, tests.
PYTHON ?= python3
# Package index of PyTorch's CPU builds, for a machine without a GPU:
#   make test TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=

# Processes that share the tests, a core each.
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TORCH_FLAGS := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
FAST := not slow and not gpu and not weights and not browser
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(WORKERS) --dist loadfile

.PHONY: setup demo test test-all bench bench-llama check fix clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q $(TORCH_FLAGS) -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $(READY)

# make demo ARGS="--name 小明 --author 明明科技"
demo: setup
	$(BIN)/glmtune demo $(ARGS)

test: setup
	$(PYTEST) -m "$(FAST)"

test-all: setup
	$(PYTEST) -m "not gpu and not weights"

# Minutes on two idle cores: 1, 1, 2, 3, 2, 1, 1, 4, 1; writes docs/performance.md anew. ADGEN's rows and tokenizer
# lie in ../shared or where GLMTUNE_SHARED says.
BENCHMARK := $(BIN)/python -m benchmarks

bench: setup
	$(BENCHMARK).chat
	$(BENCHMARK).scores
	$(BENCHMARK).decode tiny
	$(BENCHMARK).decode 1b
	$(BENCHMARK).prefill
	$(BENCHMARK).products
	$(BENCHMARK).processor
	$(BENCHMARK).decode 170m --rounds 2
	$(BENCHMARK).evaluate --rounds 1
	$(BENCHMARK).report

# llama.cpp as a peer of `make bench`: built for this processor, which takes a C++ compiler and some minutes.
bench-llama: setup
	$(BIN)/pip install -q -c constraints.txt -e '.[bench]'

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fix: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build src/*.egg-info .mypy_cache .ruff_cache .pytest_cache
