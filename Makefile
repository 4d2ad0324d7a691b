# Two commands do everything on a fresh machine: `make demo` and `make test`. Each makes its own .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Nothing is kept outside the checkout.
export DSBS_STORE_DIR ?= $(CURDIR)/.cache/stores
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/compiled

# A file's tests share what they set up, so files are what is dealt out. Each worker may take 4 GB.
WORKERS ?= 2
SIDE_BY_SIDE = -n $(WORKERS) --dist loadfile

SLOW ?= slow

.PHONY: demo test test-slow lint types install clean

demo: $(VENV)/demo  ## The whole method on the embedded dataset: label, distil by both methods, a report
	$(BIN)/dsbs demo

test: $(VENV)/test  ## The fast tests
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-slow: $(VENV)/test  ## The long tests
	$(BIN)/python -m pytest -m '$(SLOW)' $(SIDE_BY_SIDE)

lint: $(VENV)/dev  ## Lint, format check, import order of the rooms, shell scripts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/shellcheck scripts/*.sh

types: $(VENV)/dev  ## Type check
	$(BIN)/mypy

install: $(VENV)/demo

$(BIN)/python:
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if v in ((3, 11), (3, 12)) else \
	  f"dsbs_jax needs Python 3.11 or 3.12, and $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[teacher]'
	touch $@

$(VENV)/test: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,parity]'
	touch $@

$(VENV)/dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .cache build dist *.egg-info
