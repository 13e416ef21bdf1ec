SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PY := .venv/bin/python

.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## Make .venv hold what requirements.txt pins
	@hack/setup

.PHONY: demo
demo: setup ## From nothing to a tuned model: cluster, operator, quickstart (KUBECONFIG set: that cluster)
	@$(PY) hack/demo.py

.PHONY: demo-down
demo-down: setup ## Remove all that the demo made
	@$(PY) hack/demo.py --down

.PHONY: kubeconfig
kubeconfig: ## Print the path of the embedded cluster's kubeconfig
	@hack/cluster/cluster kubeconfig

.PHONY: test
test: setup ## All tiers that this machine can run, in one summary
	@hack/tiers run

.PHONY: test-unit
test-unit: setup ## No I/O, seconds
	@$(PY) -m pytest tests/unit

.PHONY: test-api
test-api: setup ## Against a real kube-apiserver
	@hack/cluster/cluster build kubernetes etcd helm
	@$(PY) -m pytest tests/api

.PHONY: test-e2e
test-e2e: setup ## On the embedded node: the chart installed, real pods training a real model
	@hack/tiers run tests/e2e

.PHONY: test-faults
test-faults: setup ## Real faults on the embedded node: the operator, the API server and etcd taken away (half an hour and more)
	@hack/tiers run tests/faults -o log_cli=true -o log_cli_level=INFO

.PHONY: test-gpu
test-gpu: setup ## On a CUDA GPU
	@$(PY) -m pytest tests/gpu

.PHONY: test-unsloth
test-unsloth: setup ## On a CUDA GPU, with the packages of the image trainer-unsloth (ten minutes: it compiles in each process)
	@$(PY) -m pytest tests/unsloth

.PHONY: check
check: setup ## Lint, types, layers, generated files
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports
	@$(PY) hack/generate --check

.PHONY: format
format: setup ## Format the code and mend what ruff can
	@.venv/bin/ruff check --fix-only --quiet .
	@.venv/bin/ruff format .

.PHONY: generate
generate: setup ## CRDs, the chart's copies of them, reference pages, the quickstart
	@$(PY) hack/generate
	@$(PY) hack/make_quickstart.py

.PHONY: lock
lock: setup ## Pin all dependencies anew
	@UV_SYSTEM_CERTS=1 hack/lock

.PHONY: images
images: ## Build both images and push them to the embedded cluster's registry
	@hack/images/build operator
	@hack/images/build trainer
