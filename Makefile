# Everything runs from .venv, which is made once and made again only when what it holds has changed.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := setup.cfg pyproject.toml constraints.txt

.PHONY: demo test lint slow soak bench bench-search scaling docs clean
.DELETE_ON_ERROR:

demo: .venv/runtime
	$(BIN)/blend search digits --reduction 0.5 --evaluations 300 --name demo-$$(date +%Y%m%d-%H%M%S)

# Two at once: most of a test is one thread's work. Tests of a file stay together, as they share what they have searched.
test: .venv/dev lint
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

slow: .venv/dev
	$(BIN)/pytest -m slow

# Kills searches by every strategy at 350 random moments and compares what they leave with undisturbed runs.
soak: .venv/dev
	$(BIN)/python -m tests.soak --kills 350 --strategies all

bench: .venv/dev
	$(BIN)/python -m tests.benchmarks

# Every strategy and encoding on three networks of two tasks; hours. What is finished is kept under runs/bench-search.
bench-search: .venv/dev
	$(BIN)/python -m tests.benchmarks.strategies --figure runs/bench-search/strategies.png

# Prints the tables of docs/scaling.md.
scaling: .venv/dev
	$(BIN)/python -m tests.benchmarks.scaling

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python >= 3.11 is needed; set PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv .venv

.venv/runtime: .venv/bin/python $(SOURCES)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/dev: .venv/runtime
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .[dev]
	@touch $@

docs: .venv/dev
	$(BIN)/python -m criteria.catalogue > docs/criteria.md
	$(BIN)/python -m blend.schema

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
