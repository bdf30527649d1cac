# The two commands of the README: `make demo` and `make test`. Both set up .venv first.
# `make test-oldest` and `make test-newest` lay other versions of torch and diffusers over it (several GB).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# `make quick` is the core and one path of each, in under a minute.
.PHONY: demo test quick test-oldest test-newest check lint types clean

OLDEST := torch==2.7.1 diffusers==0.37.0 packaging==25.0
NEWEST := torch==2.15.0 diffusers==0.42.1
LAID_OVER := $(addprefix tests/,$(addprefix core/test_,off_and_after.py session.py branches.py rehearsal.py views.py fault_threads.py fault_solver.py) \
	$(addprefix pipelines/test_,controlled.py siblings.py matrix.py guidance_pipelines.py editing.py panorama.py) \
	$(addprefix methods/test_,sharing_against_naive.py sd3_against_naive.py freecus.py guidance.py editing_runs.py))
QUICK := $(addprefix tests/core/test_,structure.py where.py words.py pictures.py numbers.py registry.py attention.py branches.py rehearsal.py \
	views.py session.py off_and_after.py) tests/methods/test_references.py

demo: $(READY)
	$(BIN)/attnctrl demo

test: $(READY_DEV)
	$(BIN)/python -m pytest -n 2

quick: $(READY_DEV)
	$(BIN)/python -m pytest -n 2 $(QUICK)

test-oldest: .over-oldest
	PYTHONPATH=$(CURDIR)/.over-oldest $(BIN)/python -m pytest -n 2 $(LAID_OVER)

test-newest: .over-newest
	PYTHONPATH=$(CURDIR)/.over-newest $(BIN)/python -m pytest -n 2 $(LAID_OVER)

.over-oldest .over-newest: .over-%: | $(READY_DEV)
	rm -rf $@.part
	$(BIN)/python -m pip install --quiet --target $@.part $(filter torch%,$(if $(filter oldest,$*),$(OLDEST),$(NEWEST)))
	$(BIN)/python -m pip install --quiet --no-deps --target $@.part $(filter-out torch%,$(if $(filter oldest,$*),$(OLDEST),$(NEWEST)))
	mv $@.part $@

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
	rm -rf $(VENV) .over-* attnctrl-out build dist *.egg-info
