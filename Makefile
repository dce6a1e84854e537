# make demo   sets up and runs the main job on the built-in model
# make test   sets up and runs the tests
#
# make dist-check   builds, installs and runs what is shipped
#
# PIP_ARGS is handed to pip. For torch's small CPU-only build on Linux:
#   make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt

.PHONY: demo test lint docs bench dist-check clean

demo: $(VENV)/.installed
	$(BIN)/d3 generate "Tell me a story about a fox."

test: $(VENV)/.test-installed
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict d3cli

docs: $(VENV)/.installed
	$(BIN)/python scripts/write_cli_docs.py
	$(BIN)/python scripts/write_models_docs.py

bench: $(VENV)/.installed
	$(BIN)/python scripts/bench_decode.py

dist-check:
	PYTHON="$(PYTHON)" PIP_ARGS="$(PIP_ARGS)" scripts/dist_check.sh

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("d3 needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) --editable .
	touch $@

$(VENV)/.test-installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) --editable ".[test]"
	touch $@ $(VENV)/.installed
