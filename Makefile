# make demo   run the whole pipeline on a synthetic shop; needs only the package index
# make test   install every optional part and run the tests
# make check  run ruff and mypy
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2

.PHONY: demo test types ruff mypy check install clean

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

test: $(VENV)/.test types
	$(BIN)/python -m pytest -n $(JOBS)

# setup.py maps the folders to `unisono.…`. mypy does not read that mapping, so it checks the same tree through links.
# pytest imports through the links too: then the tests always test this checkout, whatever copy is installed.
TYPES := build/types/unisono
types:
	mkdir -p $(TYPES)
	for f in transforms pipelines runners; do ln -sfnr $$f $(TYPES)/$$f; done
	for f in __init__.py py.typed; do ln -sfnr unisono/$$f $(TYPES)/$$f; done

ruff: $(VENV)/.test
	$(BIN)/ruff check .

mypy: $(VENV)/.test types
	MYPYPATH=build/types:. $(BIN)/mypy -p unisono -p tests -p benchmarks

check: ruff mypy

clean:
	rm -rf out build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
