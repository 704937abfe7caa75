# make run   the demo: key, nodes, page and proxy on this machine
# make test  lint, types and tests, with all they need
# make docs  docs/configuration.md and docs/metrics.md, from the code
# make bench the tables of docs/benchmarks.md, beside nginx and others; under 5 minutes
# Everything is installed into .venv, with the versions of constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2

.PHONY: run test lint types pytest bench docs debian clean

run: $(VENV)/run.stamp
	@exec $(BIN)/offload demo $(ARGS)

test: debian lint types pytest

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev.stamp
	$(BIN)/mypy

pytest: $(VENV)/dev.stamp
	$(BIN)/pytest -n $(WORKERS) --dist worksteal $(ARGS)

bench: $(VENV)/dev.stamp debian
	$(BIN)/offload-load suite bench --page docs/benchmarks.md

docs: $(VENV)/dev.stamp
	$(BIN)/python -m offload.reference docs

debian:
	@tests/support/debian-packages.sh

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11; run make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "error: no venv module; on Debian: apt-get install python3-venv" >&2; exit 2; }

$(VENV)/run.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis
