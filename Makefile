# All commands for development. `make` lists them. Each goal first creates .venv if it is missing or outdated.

PYTHON ?= python3.11
HOST   ?= 127.0.0.1
PORT   ?= 8000
PYTEST_ARGS ?=
WORKERS ?= 2
BENCH_ARGS ?=
QUICK ?=
MODELS ?=
REGISTRY ?= public

UV_VERSION := 0.13.8
VENV  := .venv
BIN   := $(VENV)/bin
# The name of a stamp contains a checksum of its sources: a new requirements.lock means a new environment.
LOCKED  := $(VENV)/.locked-$(firstword $(shell cksum < requirements.lock))
# The package is installed again, and its C kernel compiled, when one of these files changes.
STAMP   := $(VENV)/.ready-$(firstword $(shell cat pyproject.toml setup.py musicgen_bento/native/*.[ch] | cksum))

# No telemetry from any program that this file starts.
export BENTOML_DO_NOT_TRACK := True
export HF_HUB_DISABLE_TELEMETRY := 1
export DO_NOT_TRACK := 1

.DEFAULT_GOAL := help
.PHONY: help setup serve test check docs format bench image image-check lock

help:  ## list the goals
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "  PORT=8000 HOST=127.0.0.1 for serve; PYTHON=python3.11 (3.11 to 3.13) for setup; PYTEST_ARGS and WORKERS for test"

setup: $(STAMP)  ## create the environment, .venv

serve: $(STAMP)  ## start the server and its web page on http://HOST:PORT
	$(BIN)/musicgen-bento serve --host $(HOST) --port $(PORT)

test: $(STAMP)  ## run the tests, WORKERS files at a time
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --max-worker-restart 0 $(PYTEST_ARGS)

check: $(STAMP)  ## check format, lint, types, import order, documents and Kubernetes manifests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/invariants/test_imports.py tests/project/test_docs.py
	$(BIN)/python -m deploy.check

docs: $(STAMP)  ## generate docs/api.md and docs/cli.md from the code
	$(BIN)/python -m docs

format: $(STAMP)  ## format the code as `make check` requires
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## compare this server with AudioCraft and transformers; QUICK=1 for a short run
	$(BIN)/python -m bench $(if $(QUICK),--quick) $(BENCH_ARGS)

image: $(STAMP)  ## build the container image; MODELS="facebook/musicgen-small" adds cached models
	image/build $(MODELS)

image-check: $(STAMP)  ## build the image and test it in containers; REGISTRY=none without a container registry
	@START_TIME=$$(date +%s) $(if $(filter none,$(REGISTRY)),image/no-registry) sh -c 'image/build && $(BIN)/python image/check.py'

lock: $(STAMP)  ## resolve requirements.in into requirements.lock
	$(BIN)/uv pip compile requirements.in -o requirements.lock --override overrides.txt --excludes excludes.txt \
	  --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header

# A stamp is written last, so an interrupted setup starts again with an empty folder. --no-deps and --require-hashes
# install exactly requirements.lock. (To use a package mirror, set UV_DEFAULT_INDEX.)
$(LOCKED):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || { \
	  echo "$(PYTHON) is missing or has the wrong version. Install Python 3.11, or name a Python 3.11 to 3.13:" \
	    "make $(or $(MAKECMDGOALS),setup) PYTHON=python3.12" >&2; exit 1; }
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --no-deps --require-hashes -r requirements.lock
	@touch $@

# Delete the stamps of other sources: a checkout of those must compile its kernel again.
$(STAMP): $(LOCKED)
	@rm -f $(VENV)/.ready-*
	$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps --no-build-isolation --editable .
	@touch $@
