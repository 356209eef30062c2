# `make demo` and `make test` work from a fresh clone: they make .venv and install into it first.
#   make PYTHON=python3.12 test      another Python (3.11 or 3.12)
# constraints.txt pins the torch that the results in the documentation were made with.
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS)

export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION := 1
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: help demo test test-all lint types docs site site-serve notebook clean distclean

help:
	@echo "make demo       FedAvg, FedProx and SCAFFOLD on non-IID digits; results in runs/"
	@echo "make test       run the tests; test-all: with more of the slow ones"
	@echo "make lint       ruff: style and format"
	@echo "make types      mypy, strict"
	@echo "make docs       write docs/config.md from the schema"
	@echo "make site       build the site of the documentation into build/site; site-serve: show it"
	@echo "make notebook   execute docs/tutorial.py into docs/tutorial.ipynb"
	@echo "make clean      remove build products; distclean: $(VENV) as well"

demo: $(VENV)/.installed
	$(BIN)/fedopt demo

# Three at once on two cores: much of what takes long waits for processes.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 3 --dist loadfile \
  --no-loadscope-reorder

test: $(VENV)/.installed-dev
	$(PYTEST)

test-all: $(VENV)/.installed-dev
	$(PYTEST) -m "exhaustive or not exhaustive"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

docs: $(VENV)/.installed
	$(BIN)/python docs/generate.py

site: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

site-serve: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

notebook: $(VENV)/.installed-dev
	$(BIN)/python docs/make_tutorial.py

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

distclean: clean
	rm -rf $(VENV)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	  (3, 11) <= v < (3, 13) or sys.exit("fedopt needs Python 3.11 or 3.12, this is %d.%d: make PYTHON=python3.12 ..." % v)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml $(CONSTRAINTS)
	@echo "installing fedopt into $(VENV): some minutes the first time"
	$(INSTALL) --editable .
	@touch $@

# In one go, which takes less time than fedopt first.
$(VENV)/.installed-dev: $(BIN)/python pyproject.toml $(CONSTRAINTS) tests/requirements-reference.txt
	@echo "installing fedopt and the tools for tests into $(VENV): some minutes the first time"
	$(INSTALL) --editable ".[dev]"
	$(INSTALL) --no-deps --requirement tests/requirements-reference.txt
	@touch $(VENV)/.installed $@
