# make demo   a synthetic shop through the whole pipeline; needs only the package registry
# make test   the tests, with every optional part installed
# make check  ruff and mypy
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2

.PHONY: demo test types check install clean

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

# A stamp for each set of packages: the demo does not wait for torch, and nothing is installed twice.
$(VENV)/.demo: setup.py | $(BIN)/pip
	$(BIN)/pip install -q -e '.[demo]'
	touch $@

$(VENV)/.test: setup.py | $(BIN)/pip
	$(BIN)/pip install -q -e '.[test]'
	touch $@ $(VENV)/.demo

install: $(VENV)/.test

demo: $(VENV)/.demo
	$(BIN)/unisono demo

test: $(VENV)/.test
	$(BIN)/python -m pytest -n $(JOBS)

# mypy does not read the mapping of folders to `unisono.…` in setup.py: it sees the same tree through links.
TYPES := build/types/unisono
types:
	mkdir -p $(TYPES)
	for f in transforms pipelines runners; do ln -sfn $(CURDIR)/$$f $(TYPES)/$$f; done
	for f in __init__.py py.typed; do ln -sfn $(CURDIR)/unisono/$$f $(TYPES)/$$f; done

check: $(VENV)/.test types
	$(BIN)/ruff check .
	MYPYPATH=build/types $(BIN)/mypy -p unisono

clean:
	rm -rf out build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
