# Everything a person or a build machine does with this repository. `make help` lists it.

PYTHON ?= python3
VENV ?= .venv
# On Linux, PyPI's torch is the CUDA build, of several gigabytes. The small CPU build:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
PIP_FLAGS ?=

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	--constraint constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $(PIP_FLAGS)

# Two processes of one thread each are faster than one process of two.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

FACES := $(addprefix examples/avatars/,$(addsuffix .png,\
	peep-bun pixel-braid thumb-hearts peep-headscarf pixel-glasses thumb-grin))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-slow lint format bench house clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "Without a CUDA device, TORCH_INDEX=https://download.pytorch.org/whl/cpu saves gigabytes."

demo: $(VENV)/installed ## draw demo/grid.png and demo/morph.gif with the bundled checkpoint
	@$(BIN)/ddimctl sample -n 24 --class peep,pixel,thumb --columns 8 --scale 4 --out demo --force > /dev/null
	@$(BIN)/ddimctl interpolate $(FACES) --steps 20 --frames 72 --loop --video gif --fps 15 --hold 0.6 --out demo/morph --force > /dev/null
	@cp demo/morph/video.gif demo/morph.gif
	@printf '%s\n' demo/grid.png demo/morph.gif

test: $(VENV)/installed-dev ## all tests but the slow ones
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/installed-dev ## the tests that take minutes
	$(PYTEST) -m slow

lint: $(VENV)/installed-dev ## formatting, ruff and mypy
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/installed-dev ## reformat the code and mend what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/installed ## measure against a diffusers script
	@$(BIN)/python benchmarks/bench.py

house: $(VENV)/installed-dev ## measure how the source is laid out
	@$(BIN)/python benchmarks/house.py

clean: ## remove the environment, caches and the demo
	rm -rf $(VENV) demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "ddimctl needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." >&2; \
		echo "Name another one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing into $(VENV), which takes some minutes the first time." >&2
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@$(INSTALL) --editable '.[dev]'
	@touch $@
