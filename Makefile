# Needs Python 3.11 or newer and make; everything else goes into .venv.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Tests run side by side, on at most so many cores; files stay together, as the tests in one share what they make.
JOBS ?= 4
# More threads than one do not pay off on tests' small tensors.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses $(JOBS) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup test test-slow test-gpu lint demo bench clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo 'ARGS="..." passes arguments on: make demo ARGS="trainer.max_epochs=1"'

setup: $(STAMP) ## create .venv and install into it (again when pyproject.toml changes)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	@echo "Setting up $(VENV): PyTorch and its CUDA libraries are several GB, this takes a few minutes."
	@$(PYTHON) -m venv $(VENV) || { echo "No venv module: install it (Debian, Ubuntu: apt install python3-venv)."; exit 1; }
	@$(BIN)/python -m pip install --constraint constraints.txt --editable ".[dev]"
	@touch $@
	@echo "Set up. Next: make demo, or $(BIN)/python run.py --help"

test: $(STAMP) ## set up, then run the tests, all but the slow ones
	@$(PYTEST) $(ARGS)

test-slow: $(STAMP) ## run the tests that take minutes
	@$(PYTEST) -m slow $(ARGS)

test-gpu: $(STAMP) ## run the tests that need a CUDA device; they are skipped without one
	@$(BIN)/python -m pytest -m gpu -rs tests/gpu $(ARGS)

lint: $(STAMP) ## check style, format, types, and who imports whom
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

demo: $(STAMP) ## set up, then the main job on the embedded benchmark: minutes on a CPU
	@$(BIN)/python run.py $(ARGS)
	@echo "Pictures of the counterfactual samples: $$(ls -td runs/*/*/gallery 2>/dev/null | head -n 1)"

bench: $(STAMP) ## time the training step of ViT-B/32
	@mkdir -p runs
	@$(BIN)/python -m robustft.bench --model vitb32 --batch 16 --json runs/bench.json $(ARGS)

clean: ## remove .venv and caches; runs stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .import_linter_cache *.egg-info
