# The project's commands. Each works on a fresh machine as the only command; see README.md.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help
help: ## list the commands
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 10

$(VENV)/.package: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -e .
	touch $@

$(VENV)/.dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -e '.[dev,docs]'
	touch $(VENV)/.package $@

venv: $(VENV)/.dev ## create .venv with everything a developer needs

demo: $(VENV)/.package ## a tour of the recipes on an embedded node, with real processes
	$(BIN)/python -m examples.demo

test: $(VENV)/.dev ## run the test suite
	$(BIN)/python -m pytest -q

lint: $(VENV)/.dev ## style, types, dependency rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.dev ## build the documentation into docs/_build/html
	$(BIN)/sphinx-build -n -W --keep-going -q -b html docs docs/_build/html

bench: $(VENV)/.dev ## compare with genuine etcd on this machine
	$(BIN)/python -m tests.bench

proto: $(VENV)/.dev ## regenerate kvserver/proto from the .proto files
	$(BIN)/python -m kvserver.proto.generate

.PHONY: venv demo test lint docs bench proto
