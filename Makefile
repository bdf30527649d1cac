# The two commands of the README: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check lint types clean

demo: $(READY)
	$(BIN)/attnctrl demo

test: $(READY_DEV)
	$(BIN)/python -m pytest -n 2

check: lint types test

lint: $(READY_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY_DEV)
	$(BIN)/mypy

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch
	$(INSTALL) --editable .
	touch $(READY)

$(READY_DEV): $(READY)
	$(INSTALL) --editable '.[dev]'
	touch $(READY_DEV)

clean:
	rm -rf $(VENV) attnctrl-out build dist *.egg-info
