# Everything a contributor needs. `make help` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.8
READY := $(VENV)/.ready

# Tests start hundreds of Python programs. Each would compile all that it imports, which takes most of its time.
unexport PYTHONDONTWRITEBYTECODE

help: ## List the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(READY): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip sync --quiet --python $(BIN)/python requirements/dev.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

setup: $(READY) ## Make the virtual environment.

demo: $(READY) ## Set up a cluster and serve a model on a simulated NPU. MODEL=hf://… serves another one.
	$(BIN)/rm-abstract demo $(if $(MODEL),--model $(MODEL))

test: $(READY) ## Everything that can be tested here: checks, then one pytest run over all tiers.
	$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest -n auto

check: lint ## Format, lint, types, layers, unit tests: under three minutes.
	$(BIN)/python -m pytest -n auto tests/unit

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	cd runtime_images/launcher && test -z "$$(gofmt -l .)" && go vet ./... && go test ./...

format: $(READY) ## Format the code.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

scale: $(READY) ## Benchmarks against a real API server; RMA_SCALE="--only burst --size 0.2" for a part of them.
	PYTHONPATH=$(CURDIR)/tests:$(CURDIR)/tests/api $(BIN)/python -m scale --json build/scale.json $(RMA_SCALE)

test-slow-devices: $(READY) ## Device plugins: the whole conformance suite over each vendor's module, a soak. RMA_SOAK_SECONDS=86400 for a day.
	$(BIN)/python -m pytest tests/contract/slow_devices.py

test-slow-compilers: $(READY) ## Kernels for an NPU of FuriosaAI, really compiled: 20 minutes.
	$(BIN)/python -m pytest tests/contract/slow_compilers.py

test-slow-engines: $(READY) ## vLLM on the CPU, warmed up in a build and started from its cache; DeepSpeed on the CPU: 15 minutes.
	$(BIN)/python -m pytest tests/contract/slow_engines.py tests/sdk_devices/slow_devices_vllm.py

test-slow-crashes: $(READY) ## The operator dies at every write of every scenario: 10 minutes.
	$(BIN)/python -m pytest tests/unit/plan/slow_crash_points.py

test-slow-vllm: $(READY) ## vLLM on the CPU in pods of the cluster, and a remote accelerator in front of it: 30 minutes, 15 GB of disk.
	$(BIN)/python -m pytest tests/cluster/slow_vllm.py

test-slow-images: $(READY) ## Images that are built twice are the same: 10 minutes.
	$(BIN)/python -m pytest tests/contract/slow_images.py

crds: $(READY) ## Regenerate the CRDs from the models.
	$(BIN)/python -m rm_api.crdgen crds charts/rm-abstract/files/crds

images: $(READY) ## Build the container images.
	$(BIN)/python -m rm_local_cluster.images

lock: $(READY) ## Resolve the lock file of the development environment again.
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --extra operator --extra device-plugin --extra runtime --extra cli --override requirements/openvino.overrides --output-file requirements/dev.txt pyproject.toml requirements/dev.in
	$(BIN)/python -m rm_local_cluster.images.locks

down: $(READY) ## Stop the local cluster.
	$(BIN)/rm-abstract down

.PHONY: help setup demo test test-slow-devices test-slow-compilers test-slow-engines test-slow-crashes test-slow-vllm test-slow-images check lint format scale crds images lock down
