# Everything a contributor types. `make` alone lists it; each goal makes .venv first where it is missing or old.

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
# Named after what they were made from: another requirements.lock is another environment.
LOCKED  := $(VENV)/.locked-$(firstword $(shell cksum < requirements.lock))
# And on the kernel's sources, which are compiled with it.
STAMP   := $(VENV)/.ready-$(firstword $(shell cat pyproject.toml setup.py musicgen_bento/native/*.[ch] | cksum))

# Nothing that is started from here reports its use to anyone.
export BENTOML_DO_NOT_TRACK := True
export HF_HUB_DISABLE_TELEMETRY := 1
export DO_NOT_TRACK := 1

.DEFAULT_GOAL := help
.PHONY: help setup serve test check docs format bench image image-check lock

help:  ## this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "  PORT=8000 HOST=127.0.0.1 for serve; PYTHON=python3.11 (3.11 to 3.13) for the set-up; PYTEST_ARGS and WORKERS for test"

setup: $(STAMP)  ## make the environment, .venv

serve: $(STAMP)  ## start the service and its page on http://HOST:PORT
	$(BIN)/musicgen-bento serve --host $(HOST) --port $(PORT)

test: $(STAMP)  ## run the tests, two files at a time
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --max-worker-restart 0 $(PYTEST_ARGS)

check: $(STAMP)  ## format, lint, types, imports go down, docs match the code, manifests are valid
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/invariants/test_imports.py tests/project/test_docs.py
	$(BIN)/python -m deploy.check

docs: $(STAMP)  ## write docs/api.md and docs/cli.md anew, from the code
	$(BIN)/python -m docs

format: $(STAMP)  ## put the code into the form that `make check` wants
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## this service, AudioCraft and transformers side by side; QUICK=1 for the short form
	$(BIN)/python -m bench $(if $(QUICK),--quick) $(BENCH_ARGS)

image: $(STAMP)  ## build the container image; MODELS="facebook/musicgen-small" puts cached models into it
	image/build $(MODELS)

image-check: $(STAMP)  ## build the image, run it as people do, take it down; REGISTRY=none on a machine without one
	@BEGAN=$$(date +%s) $(if $(filter none,$(REGISTRY)),image/no-registry) sh -c 'image/build && $(BIN)/python image/check.py'

lock: $(STAMP)  ## resolve requirements.in again, into requirements.lock
	$(BIN)/uv pip compile requirements.in -o requirements.lock --override overrides.txt --excludes excludes.txt \
	  --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header

# A stamp is written last, so an interrupted set-up is done again, from an empty folder. --no-deps and the
# hashes: what is installed is requirements.lock, nothing else. (uv takes a package mirror from UV_DEFAULT_INDEX.)
$(LOCKED):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || { \
	  echo "No usable $(PYTHON) was found. Install Python 3.11, or name a 3.11, 3.12 or 3.13:" \
	    "make $(or $(MAKECMDGOALS),setup) PYTHON=python3.12" >&2; exit 1; }
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --no-deps --require-hashes -r requirements.lock
	@touch $@

# The stamps of other sources go: whoever returns to those needs their kernel again.
$(STAMP): $(LOCKED)
	@rm -f $(VENV)/.ready-*
	$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps --no-build-isolation --editable .
	@touch $@
