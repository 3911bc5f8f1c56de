# Every target makes the virtual environment it needs, so any of them may be the first command.
# Choose another interpreter with PYTHON=..., another place for the environment with VENV=...,
# and pass arguments with ARGS=..., for instance: make test ARGS="tests/core -x"

VENV ?= .venv
SEEDS ?= 1000
FIRST ?= 0
NODES ?= 3
SECONDS ?= 120
CHAOS ?=
COMPILED_TESTS := tests/core tests/storage tests/member tests/kv tests/testing tests/transport tests/service \
	tests/test_codecs.py tests/test_digests.py tests/test_machine.py tests/test_packaging.py tests/test_state.py \
	tests/test_turns.py
ARGS ?=

# The first Python >= 3.10 that runs and can make virtual environments (a shim on the path may do neither).
ifndef PYTHON
PYTHON := $(shell for python in python3 python3.13 python3.12 python3.11 python3.10 python3.14 python; do \
	if $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; \
	then echo $$python; break; fi; done)
endif

# The oldest and the newest that are supported; of those of pyenv too, though they are not on the path.
OLDEST := 3.10
NEWEST := 3.13
python_of = $(shell for python in python$(1) "$$(pyenv prefix $(1) 2>/dev/null)/bin/python"; do \
	if "$$python" -c 'import ensurepip, sys, venv; sys.exit("%d.%d" % sys.version_info[:2] != "$(1)")' >/dev/null 2>&1; \
	then echo "$$python"; break; fi; done)

# So many tests at once: most of the time of most is spent waiting for processes.
WORKERS ?= $(shell echo $$((2 * $$(getconf _NPROCESSORS_ONLN))))

PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

# Tests start many hundreds of processes, each of which would compile all of the sources anew.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help venv browser test test-all test-oldest test-newest python-oldest python-newest lint type scenes sim mutants chaos soak conformance demo cluster compile compiled pure wheels docs-environment docs release-check bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP)  ## make the virtual environment and install the project into it

$(STAMP): setup.cfg setup.py
	@test -n "$(PYTHON)" || { echo "No Python >= 3.10 with the venv module was found; name one with PYTHON=..." >&2; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --use-pep517 --editable '.[dev]'
	@touch $@

test: $(STAMP)  ## run the tests
	$(PY) -m pytest $(or $(ARGS),-n $(WORKERS) --dist worksteal)

test-all:  ## run the tests on the oldest Python that is supported, and on the newest
	$(MAKE) test-oldest
	$(MAKE) test-newest

test-oldest:  ## run the tests on the oldest of them, in an environment of its own
	$(MAKE) test VENV=.venv-$(OLDEST) PYTHON="$(call python_of,$(OLDEST))"

test-newest:  ## run the tests on the newest
	$(MAKE) test VENV=.venv-$(NEWEST) PYTHON="$(call python_of,$(NEWEST))"

# Where they are, if they are here.
python-oldest:
	@echo $(call python_of,$(OLDEST))

python-newest:
	@echo $(call python_of,$(NEWEST))

lint: $(STAMP)  ## check style, format and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m tests.testing.identities

type: $(STAMP)  ## check the types only
	$(PY) -m mypy

scenes: $(STAMP)  ## write the expected outcome of the core's scenes anew; review the difference
	$(PY) -m tests.core.scene --rewrite

sim: $(STAMP)  ## simulate SEEDS=1000 histories of a cluster under faults; FIRST=0 is the first
	$(PY) -m raftsvc.testing --seeds $(SEEDS) --first $(FIRST)

mutants: $(STAMP)  ## plant deliberate bugs: how many seeds does the simulator need for each?
	$(PY) -m tests.mutants

chaos: $(STAMP)  ## real processes under real faults for SECONDS=120, with NODES=3; CHAOS="--help" for more
	$(PY) -m tests.chaos --nodes $(NODES) --seconds $(SECONDS) $(CHAOS)

soak: $(STAMP)  ## three nodes under load for SECONDS=120; memory, threads and files stay flat
	$(PY) -m tests.soak --seconds $(SECONDS)

conformance: $(STAMP)  ## the test suites of hosts (cachelib, limits, tooz ...), unmodified, on a cluster; ARGS="cachelib --python 3.13"
	$(PY) -m tests.conformance $(ARGS)

demo: $(STAMP)  ## three nodes, the leader killed under load, nothing acknowledged lost; then locks, an election and jobs
	$(PY) examples/demo.py
	$(PY) examples/tour.py

cluster: $(STAMP)  ## three nodes to try by hand, until Ctrl-C
	$(PY) examples/cluster.py

compile: $(STAMP)  ## compile the hot rooms in place, which needs a C compiler; `make pure` takes it back
	find raftsvc -name '*.so' -delete
	RAFTSVC_COMPILE=1 $(PY) setup.py build_ext --inplace

compiled: compile  ## run the tests of the compiled rooms, compiled
	PYTHONFAULTHANDLER=1 $(PY) -m pytest $(or $(ARGS),-n $(WORKERS) --dist worksteal $(COMPILED_TESTS))

pure:  ## remove what was compiled in place
	rm -rf build
	find raftsvc -name '*.so' -delete

wheels: $(STAMP)  ## build the source distribution, a pure wheel and a compiled one
	rm -rf build dist
	$(PY) setup.py --quiet sdist
	$(PY) -m pip wheel --no-cache-dir --no-deps --wheel-dir dist dist/*.tar.gz
	RAFTSVC_COMPILE=1 $(PY) -m pip wheel --no-cache-dir --no-deps --wheel-dir dist dist/*.tar.gz

release-check: wheels  ## build what is released, install each in a fresh environment, run README there; for another Python: VENV=... PYTHON=...
	$(PY) -m tests.release dist

# Sphinx and its theme are in an environment of their own.
DOCS_VENV ?= .venv-docs
DOCS_PY := $(DOCS_VENV)/bin/python
DOCS_STAMP := $(DOCS_VENV)/.installed

$(DOCS_STAMP): setup.cfg setup.py
	@test -n "$(PYTHON)" || { echo "No Python >= 3.10 with the venv module was found; name one with PYTHON=..." >&2; exit 1; }
	@$(DOCS_PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(DOCS_VENV)
	$(DOCS_PY) -m pip install --quiet --disable-pip-version-check --use-pep517 --editable '.[docs]'
	@touch $@

docs-environment: $(DOCS_STAMP)  ## make the virtual environment of the next

docs: $(DOCS_STAMP)  ## make a site of the pages and the docstrings, in docs/_build/html; every warning is an error
	$(DOCS_PY) -m sphinx --fail-on-warning --keep-going --fresh-env --quiet --builder html docs docs/_build/html

# The systems to compare with are in an environment of their own.
BENCH_VENV ?= .venv-bench
BENCH_PY := $(BENCH_VENV)/bin/python
BENCH_STAMP := $(BENCH_VENV)/.installed

$(BENCH_STAMP): setup.cfg setup.py
	@test -n "$(PYTHON)" || { echo "No Python >= 3.10 with the venv module was found; name one with PYTHON=..." >&2; exit 1; }
	@$(BENCH_PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(BENCH_VENV)
	$(BENCH_PY) -m pip install --quiet --disable-pip-version-check --use-pep517 --editable '.[bench]'
	@touch $@

browser:  ## install the Chromium that tests of the operator's page drive, if none is here; without it they are skipped
	@for name in chromium chromium-browser google-chrome google-chrome-stable; do \
		if command -v $$name >/dev/null; then exit 0; fi; done; apt-get install -y -q chromium >/dev/null

bench: $(BENCH_STAMP)  ## compare with etcd and PySyncObj, or ARGS="--against REV" with a git revision; ARGS="--quick", ARGS="--help"
	$(BENCH_PY) -m benchmarks $(ARGS)

clean: pure  ## remove the virtual environment and everything generated
	rm -rf $(VENV) $(VENV)-$(OLDEST) $(VENV)-$(NEWEST) $(BENCH_VENV) $(DOCS_VENV) dist docs/_build *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
