# `make setup` on a fresh machine: virtual environment and pinned packages. `make test` adds those of the tests.
PYTHON ?= python3
# Where PyTorch comes from. `auto`: its CPU builds where there is no NVIDIA card and their index answers, else
# pip's own index, as `default` says. Any other index by its address:
#   make setup TORCH_INDEX=https://download.pytorch.org/whl/cu126
TORCH_INDEX ?= auto

# Processes that share the tests, a core each.
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_TO_TEST := $(VENV)/.ready-to-test
FAST := not slow and not gpu and not weights and not browser
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: setup develop demo test test-all bench bench-llama check fix clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	options=$$($(BIN)/python tools/torch_index.py $(TORCH_INDEX)) && \
		$(BIN)/pip install -q $$options -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $(READY)
	@echo 'Ready. Type: source $(BIN)/activate'

develop: $(READY_TO_TEST)

$(READY_TO_TEST): $(READY)
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $(READY_TO_TEST)

# make demo ARGS="--name 小明 --author 明明科技"
demo: setup
	$(BIN)/glmtune demo $(ARGS)

test: develop
	$(PYTEST) -m "$(FAST)"

test-all: develop
	$(PYTEST) -m "not gpu and not weights" --hypothesis-profile=thorough

# Minutes on two idle cores: 1, 1, 1, 2, 3, 2, 1, 1, 4, 1, 12, 10, 2, 12, 10; writes docs/performance.md anew. ADGEN's
# rows and tokenizer lie in ../shared or where GLMTUNE_SHARED says; the laptop's 4 GB lie in /tmp afterwards.
BENCHMARK := $(BIN)/python -m benchmarks

bench: develop
	$(BENCHMARK).chat
	$(BENCHMARK).scores
	$(BENCHMARK).encode
	$(BENCHMARK).decode tiny
	$(BENCHMARK).decode 1b
	$(BENCHMARK).prefill
	$(BENCHMARK).products
	$(BENCHMARK).processor
	$(BENCHMARK).decode 170m --rounds 2
	$(BENCHMARK).evaluate --rounds 1
	$(BENCHMARK).train
	$(BENCHMARK).laptop
	$(BENCHMARK).demo --rounds 1
	$(BENCHMARK).memory
	$(BENCHMARK).cards
	$(BENCHMARK).report
	$(BIN)/python -m tools.memory_tables

# llama.cpp as a peer of `make bench`: built for this processor, which takes a C++ compiler and some minutes.
bench-llama: develop
	$(BIN)/pip install -q -c constraints.txt -e '.[bench]'

check: develop
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fix: develop
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build src/*.egg-info .mypy_cache .ruff_cache .pytest_cache
