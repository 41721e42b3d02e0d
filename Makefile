# Every target needs Python 3.11 to 3.14 and nothing else: it sets up .venv first.
PYTHON ?= python3
BIN := .venv/bin
export FLWR_TELEMETRY_ENABLED = 0
export RAY_USAGE_STATS_ENABLED = 0
export FLWR_DISABLE_UPDATE_CHECK = 1

.PHONY: install demo test test-sites test-docker test-gpu lint check size requirements sbom format clean
.DEFAULT_GOAL := check

install: .venv/installed

demo: .venv/installed
	$(BIN)/wardround sweep experiment=demo

# Left out: tests that wait for real processes or compute long, and the containers.
test: .venv/installed
	$(BIN)/pytest -m "not docker and not gpu and not long and not (e2e and slow)" -n 2 --dist loadfile --no-loadscope-reorder
	@echo "left out: 'make test-sites' (real processes that die, hang or cheat; long attacks; the wheel), 'make test-docker' (needs an engine), 'make test-gpu'"

test-sites: .venv/installed
	$(BIN)/pytest -m "long or (e2e and slow)" -n 3 --dist loadfile --no-loadscope-reorder

test-docker: .venv/installed
	$(BIN)/pytest -m docker

test-gpu: .venv/installed
	$(BIN)/pytest -m gpu

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

check: lint
	$(BIN)/pytest -m "not slow and not gpu and not e2e and not docker" -n 2 --dist loadfile --no-loadscope-reorder

# The house in numbers, each beside its goal.
size: .venv/installed
	$(BIN)/python -m benchmarks.size

# The files of hashes, from constraints.txt and the package index; after a change of either.
requirements: .venv/installed
	$(BIN)/python -m release.requirements

# What is installed, as CycloneDX with hashes: `make sbom ENVIRONMENT=/srv/wardround/bin/python` for another one.
ENVIRONMENT ?= $(BIN)/python
sbom: .sbom/installed
	.sbom/bin/cyclonedx-py environment --spec-version 1.6 --output-format JSON -o .sbom/environment.json $(ENVIRONMENT)
	.sbom/bin/python -m release.sbom .sbom/environment.json sbom.cdx.json

.sbom/installed: requirements/sbom.txt
	$(PYTHON) -m venv .sbom
	.sbom/bin/pip install -q --require-hashes -r requirements/sbom.txt
	touch $@

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' || \
		{ echo "Wardround needs Python 3.11 to 3.14; '$(PYTHON)' is $$($(PYTHON) --version). Use: make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[demo,ray,launch,dev]'
	touch $@

clean:
	rm -rf .venv .sbom outputs
