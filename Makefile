# make demo and make test do all the set-up there is. Needs Python 3.11 or newer, and Maven for the local Kafka.

PYTHON ?= python3
UV_VERSION := 0.13.9
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ROWS ?=
QUERY ?=
TEXTS ?=
WORKERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
SEEDS ?=
LANES ?=
NAMES ?=
API_SERVER ?=
# A shell in a network, mounts and processes of its own, which all end with it; a proxy would be out of its reach.
APART := NETWORK_APART=1 NO_PROXY='*' no_proxy='*' unshare --net --mount --pid --fork --kill-child --mount-proc sh -c

.DEFAULT_GOAL := help
.PHONY: help setup demo bench test test-deploy test-image test-cluster soak mutants lint format lock broker clean

help: ## what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## install everything into .venv (the others do it by themselves)

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "stream-embedder needs Python 3.11 or newer, and $(PYTHON) is not: install one, and name it: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

$(STAMP): requirements.lock pyproject.toml | $(BIN)/uv
	@echo "installing once: about 7 GB with CUDA libraries, a minute or two"
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $@

demo: $(STAMP) ## real text through a real Kafka, then a search over it: make demo ROWS=2000 QUERY="…"
	@$(BIN)/stream-embedder demo $(if $(ROWS),--rows $(ROWS)) $(if $(QUERY),--query "$(QUERY)")

bench: $(STAMP) ## the encoder beside its peers, half an hour; a quick look: make bench TEXTS=200
	@$(BIN)/stream-embedder bench encoder $(if $(TEXTS),--texts $(TEXTS) --rounds 1 --no-sweep)

test: $(STAMP) ## all tests but the long ones, a file at a time on each core and one more: make test WORKERS=1
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m "not soak and not deploy" -n $(WORKERS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-deploy: $(STAMP) ## what is in deploy/, by tools that it gets with Go; on a real API server: make test-deploy API_SERVER=1
	@HF_HUB_OFFLINE=1 API_SERVER=$(API_SERVER) $(BIN)/python -m pytest tests/deploy

test-image: $(STAMP) ## the image, built by buildah, and its demo with a read-only root: as root, ten minutes the first time
	@$(BIN)/python -m tests.deploy.needs
	@HF_HUB_OFFLINE=1 $(APART) 'ip link set lo up && exec $(BIN)/python -m pytest tests/deploy/test_image.py'

test-cluster: $(STAMP) ## the chart under KubeRay, on a cluster of real programs: as root, with Go, half an hour the first time
	@$(BIN)/python -m tests.deploy.needs cluster
	@HF_HUB_OFFLINE=1 $(APART) 'ip link set lo up && exec $(BIN)/python -m pytest -s tests/deploy/test_cluster.py'

soak: $(STAMP) ## the fault lab, an hour or two, then the long tests; one seed alone: make soak SEEDS=7
	@$(BIN)/python -m tests.lab --report faults.md $(if $(SEEDS),--seeds $(SEEDS)) $(if $(LANES),--lanes $(LANES))
	@$(if $(SEEDS),true,HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m soak)

mutants: $(STAMP) ## guards taken away one at a time, each of which a test must notice: make mutants NAMES="T1 T2"
	@HF_HUB_OFFLINE=1 $(BIN)/python -m tests.mutants $(NAMES)

lint: $(STAMP) ## style, formatting and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(STAMP) ## mend what lint can mend
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .

lock: $(BIN)/uv ## pin every dependency anew in requirements.lock
	@$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --no-annotate \
	  --custom-compile-command "make lock" --group dev pyproject.toml -o requirements.lock

broker: $(STAMP) ## a local Kafka on port 9092, until Ctrl-C
	@$(BIN)/python -m pipelines.broker

clean: ## remove .venv and what the tools left behind
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
