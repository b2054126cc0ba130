# make demo | test | check | gpu | clean. Everything is installed into .venv with the versions of constraints.txt;
# after the first install nothing needs a network until pyproject.toml or constraints.txt changes.
PYTHON ?= python3
DEMO_POLICIES ?= exclusive fifo sjf srtf aspen
WORKERS ?= 2

BIN := .venv/bin
BASE := .venv/.loramux-base
DEV := .venv/.loramux-dev
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt $(BIN)/python -m pip install -q
NO_PACKAGES := { echo 'loramux: the packages could not be installed (see above); the first install needs a Python package index' >&2; exit 1; }

.PHONY: help demo test check gpu clean
.DELETE_ON_ERROR:

help:
	@echo 'make demo    install the simulator (no torch) and draw charts of the sample trace into demo/plots'
	@echo 'make test    install torch and the development tools, and run the tests'
	@echo 'make check   format, lint, types, import contracts, then the tests'
	@echo 'make gpu     the GPU checks (none in this version)'
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
	@$(BIN)/python -m pytest -q -n $(WORKERS)

check: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@$(MAKE) --no-print-directory test

gpu:
	@echo 'loramux: nothing to check on a GPU: this version only simulates; the training runtime comes with a later one (exit 5)' >&2; exit 5

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

$(DEV): pyproject.toml constraints.txt | .venv/bin/pip
	@echo 'installing loramux, torch and the development tools into .venv (once)'
	@$(PIP) -e '.[dev]' || $(NO_PACKAGES)
	@touch $(BASE) $@
