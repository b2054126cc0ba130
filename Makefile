# make demo | runtime | test | check | fuzz | gpu | clean. Everything is installed into .venv with the versions of constraints.txt;
# after the first install nothing needs a network until pyproject.toml or constraints.txt changes.
PYTHON ?= python3
DEMO_POLICIES ?= exclusive fifo sjf srtf aspen
WORKERS ?= 2
FUZZ_SECONDS ?= 60
CHECK_FUZZ_SECONDS ?= 5
GPU_OUT ?= gpu
GPU_PYTHON ?= $(shell test -x .venv/bin/python && .venv/bin/python -c 'import torch' 2>/dev/null && echo .venv/bin/python || echo $(PYTHON))

BIN := .venv/bin
BASE := .venv/.loramux-base
DEV := .venv/.loramux-dev
RUNTIME := .venv/.loramux-runtime
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt $(BIN)/python -m pip install -q
NO_PACKAGES := { echo 'loramux: the packages could not be installed (see above); the first install needs a Python package index' >&2; exit 1; }

.PHONY: help demo runtime test check fuzz gpu clean
.DELETE_ON_ERROR:

help:
	@echo 'make demo    install the simulator (no torch) and draw charts of the sample trace into demo/plots'
	@echo 'make runtime add torch and transformers, for loramux train'
	@echo 'make test    install torch and the development tools, and run the tests'
	@echo 'make check   format, lint, types, import contracts, then the tests'
	@echo 'make fuzz    read broken files of every kind, FUZZ_SECONDS=60 for each; faults are kept in fuzz-faults'
	@echo 'make gpu     everything that needs a GPU (torch 2.11+, transformers 5.17+): tests and benchmarks into $(GPU_OUT)'
	@echo 'make clean   remove what make made, .venv included'

demo: $(BASE)
	@echo 'simulating the sample trace under: $(DEMO_POLICIES)'
	@$(BIN)/loramux simulate $(addprefix --policy ,$(DEMO_POLICIES)) --out demo --force --plots --quiet
	@echo
	@echo 'Charts (each also as SVG, with the CSV behind it):'
	@ls demo/plots/*.png
	@echo 'Next, on jobs of your own (README.md says what the file holds):'
	@echo '  $(BIN)/simulate --trace jobs.csv --policy aspen'

test: $(DEV)
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

check: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@$(MAKE) --no-print-directory fuzz FUZZ_SECONDS=$(CHECK_FUZZ_SECONDS)
	@$(MAKE) --no-print-directory test

fuzz: $(DEV)
	@$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS)

runtime: $(RUNTIME)

gpu:
	@PYTHONPATH=traces:profiles:policies:simulator:runtime:analysis:cli:tests/benchmarks $(GPU_PYTHON) -m gpu $(GPU_OUT)

clean:
	rm -rf .venv demo dist build .mypy_cache .ruff_cache .import_linter_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || { echo 'loramux needs python3 >= 3.11 ($(PYTHON) is not); name another one: make PYTHON=/path/to/python3.11' >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null \
	  || { echo 'loramux needs python3 with venv: apt install python3-venv' >&2; exit 1; }
	@$(PYTHON) -m venv .venv

$(BASE): pyproject.toml constraints.txt | .venv/bin/pip
	@echo 'installing loramux into .venv (once; no torch)'
	@$(PIP) -e . || $(NO_PACKAGES)
	@touch $@

$(RUNTIME): pyproject.toml constraints.txt | .venv/bin/pip
	@echo 'installing loramux and its training runtime (torch, transformers) into .venv (once)'
	@$(PIP) -e '.[runtime]' || $(NO_PACKAGES)
	@touch $(BASE) $@

$(DEV): pyproject.toml constraints.txt | .venv/bin/pip
	@echo 'installing loramux, torch and the development tools into .venv (once)'
	@$(PIP) -e '.[dev]' || $(NO_PACKAGES)
	@touch $(BASE) $@
