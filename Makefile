# Everything here works on a plain machine: Python 3.11 to 3.13, no accelerator, no Docker, no account.
PYTHON ?= python3
BIN    := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help install demo test test-quick lint golden k8s lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: .venv/.installed ## make .venv and install the locked dependencies

.venv/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else f"Python 3.11 to 3.13 is needed, $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=python3.12 install")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --no-deps --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: install ## the whole job on real faces: bucket, two elastic nodes, checkpoint, verification
	$(BIN)/python -m demo

test: install ## all tests
	$(BIN)/python -m pytest

test-quick: install ## the tests that take seconds
	$(BIN)/python -m pytest -m 'not slow and not interop'

lint: install ## style, types and the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

golden: install ## renew the golden manifests after a change that is meant
	UPDATE_GOLDEN=1 $(BIN)/python -m pytest tests/components/test_appdefs.py

k8s: install ## render k8s/manifests and k8s/jobs anew from the chart and the components
	PYTHONPATH=. $(BIN)/python scripts/render_k8s.py

lock: ## resolve the dependencies anew (needs uv)
	bash scripts/lock.sh

clean: ## remove what the demo and the tests left
	rm -rf .demo .run .mypy_cache .ruff_cache .hypothesis
