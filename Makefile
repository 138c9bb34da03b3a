# Two commands need nothing but Python 3.11, its venv module and make: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SKIPS := $(if $(filter true,$(CI)),-p tests.no_skips)
BENCH := $(if $(SCALE),--scale $(SCALE)) $(ARGS)
LONG := $(if $(filter true,$(CI)),-m "not faults")

# The tests start some hundred processes of ours: each module is compiled once for all of them, whatever the shell says.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo up test faults bench bench-peers lint format clean

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(STAMP) ## Make the virtual environment in .venv, with everything that development needs

# Installed again only when what is to be installed has changed. On Linux, PyPI's torch is the CUDA build: several gigabytes.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed; say which one with make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "Python's venv module is missing: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[all,dev]'
	@touch $@

demo: $(STAMP) ## Run the main job on this machine: fetch, stream, train
	$(BIN)/ingest demo

up: $(STAMP) ## Start Redis, a data node and the dashboard, in the foreground
	$(BIN)/ingest up

# Four at a time, a file to each: much of a test is waiting for a real server.
test: $(STAMP) ## Run all tests (ARGS="-k name" for some)
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder $(SKIPS) $(LONG) $(ARGS)

# One at a time: how long a recovery takes is part of what it says.
faults: $(STAMP) ## Run the long fault suite (SEED=1 as then, KILLS=200, ARGS="-k name")
	INGEST_FAULTS_SEED=$(SEED) INGEST_FAULTS_KILLS=$(or $(KILLS),200) \
		$(BIN)/python -m pytest -m faults $(SKIPS) tests/faults tests/unit/test_ledger_machine.py $(ARGS)

# The peers' pins clash: each has an environment of its own, in .bench. Beyond PyPI they need curl, aria2 and nginx-light.
bench: bench-peers ## Measure against others, and write docs/performance.md (SCALE=small: sizes for a first look)
	$(BIN)/python -m benchmarks $(BENCH)

bench-peers: $(STAMP) ## Install those whom we are measured against
	$(BIN)/python -m benchmarks --install

bench-%: bench-peers
	$(BIN)/python -m benchmarks $(BENCH) $*

lint: $(STAMP) ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## Put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the virtual environment and what the tools left
	rm -rf $(VENV) .bench build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find ingest workers tests -name __pycache__ -type d -prune -exec rm -rf {} +
