# Everything here works on a plain machine: Python 3.11 to 3.13, no accelerator, no Docker, no account.
PYTHON ?= python3
BIN    := .venv/bin
# Tests at once: one more than a small machine has cores, as many tests wait for a deadline or a store.
TESTS_AT_ONCE ?= 3
PYTEST := $(BIN)/python -m pytest
AT_ONCE := -n $(TESTS_AT_ONCE) --dist loadgroup --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help install demo test test-quick fuzz soak lint golden reference k8s image audit sbom lock clean

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

test: install ## all tests: those that start whole jobs first, then the quick ones, then those that need the machine to themselves
	$(PYTEST) $(AT_ONCE) -m 'not alone'
	$(PYTEST) -m alone $$(grep -rl --include=*.py mark.alone tests)  # to collect all others takes as long

test-quick: install ## the tests that take seconds
	$(PYTEST) $(AT_ONCE) -m 'not slow and not interop'

fuzz: install ## mutated inputs of every format, COUNT=20000 each
	$(BIN)/python -m tests.fuzz --count $(or $(COUNT),20000) --seed $(or $(SEED),1)

soak: install ## a job of four nodes under random faults for MINUTES=10, SEED=1, against the undisturbed run
	$(BIN)/python -m tests.soak --minutes $(or $(MINUTES),10) --seed $(or $(SEED),1)

lint: install ## style, types and the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file .ci/mypy-components.ini -c "$$(cat components.py)"  # its name is also the package's
	$(BIN)/lint-imports

golden: install ## renew the golden manifests after a change that is meant
	UPDATE_GOLDEN=1 $(BIN)/python -m pytest tests/components/test_appdefs.py

reference: install ## write docs/reference.md anew from the options
	PYTHONPATH=. $(BIN)/python scripts/make_reference.py

k8s: install ## render k8s/manifests and k8s/jobs anew from the chart and the components
	PYTHONPATH=. $(BIN)/python scripts/render_k8s.py

image: ## build the cpu image without a registry, check it, train in it (root, Debian)
	docker/build_without_registry.sh train

.venv-tools/.installed:
	$(PYTHON) -m venv .venv-tools
	.venv-tools/bin/pip install --quiet pip-audit==2.10.1 cyclonedx-bom==7.5.0
	@touch $@

audit: .venv-tools/.installed ## known vulnerabilities of what the image holds; says so when the database is out of reach
	@.venv-tools/bin/pip-audit --disable-pip --no-deps --require-hashes --progress-spinner off -r docker/requirements.lock; \
	code=$$?; [ $$code -le 1 ] && exit $$code || echo "not audited: the vulnerability database cannot be reached from here"

sbom: .venv-tools/.installed ## what the image holds, as CycloneDX, from the lock file
	(cat scripts/constraints.txt docker/requirements.lock) | \
	  .venv-tools/bin/cyclonedx-py requirements --output-reproducible --of JSON -o docker/sbom.cdx.json -

lock: ## resolve the dependencies anew (needs uv)
	bash scripts/lock.sh

clean: ## remove what the demo and the tests left
	rm -rf .demo .run .mypy_cache .ruff_cache .hypothesis
