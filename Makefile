# Every target makes the virtual environment it needs, so any of them may be the first command.
# Choose another interpreter with PYTHON=..., another place for the environment with VENV=...,
# and pass pytest arguments with ARGS=..., for instance: make test ARGS="tests/core -x"

VENV ?= .venv
ARGS ?= -n auto --dist worksteal

# The first Python >= 3.10 that runs and can make virtual environments (a shim on the path may do neither).
ifndef PYTHON
PYTHON := $(shell for python in python3 python3.13 python3.12 python3.11 python3.10 python3.14 python; do \
	if $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; \
	then echo $$python; break; fi; done)
endif

PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help venv test lint type scenes demo cluster clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP)  ## make the virtual environment and install the project into it

$(STAMP): setup.cfg setup.py
	@test -n "$(PYTHON)" || { echo "No Python >= 3.10 with the venv module was found; name one with PYTHON=..." >&2; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --use-pep517 --editable '.[dev]'
	@touch $@

test: $(STAMP)  ## run the tests
	$(PY) -m pytest $(ARGS)

lint: $(STAMP)  ## check style, format and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

type: $(STAMP)  ## check the types only
	$(PY) -m mypy

scenes: $(STAMP)  ## write the expected outcome of the core's scenes anew; review the difference
	$(PY) -m tests.core.scene --rewrite

demo: $(STAMP)  ## three nodes, the leader killed under load, nothing acknowledged lost
	$(PY) examples/demo.py

cluster: $(STAMP)  ## three nodes to try by hand, until Ctrl-C
	$(PY) examples/cluster.py

.PHONY: soak
soak: $(STAMP)  ## three nodes under load for ten minutes; memory, threads and files stay flat
	$(PY) -m tests.soak --seconds 600

clean:  ## remove the virtual environment and everything generated
	rm -rf $(VENV) build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
