# The words to know: demo, test, check, bench, docs. Each makes the environment it needs; nothing else is touched.
PYTHON ?= python3
VENV ?= .venv
OUT ?= demo
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt

.PHONY: help demo test check bench docs clean

help:
	@echo "make demo   create the environment, install, run the demo on a simulated cohort; prints where the page is"
	@echo "make test   the test suite (no long training)"
	@echo "make check  ruff, mypy, import layers, formatting"
	@echo "make bench  slow tests and every benchmark whose numbers we quote"
	@echo "make docs   run every snippet of the documentation"

demo: $(VENV)/.installed
	$(BIN)/oligovox demo --out $(OUT)

# A thread a process: more get into each other's way, and everything takes several times as long.
test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q

check: $(VENV)/.installed-dev
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow
	$(BIN)/python -m pytest -q --hypothesis-profile=search tests/simulate tests/metrics
	for script in benchmarks/bench_*.py; do $(BIN)/python $$script || exit 1; done
	$(BIN)/python benchmarks/page.py

docs: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q tests/docs

clean:
	rm -rf $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "oligovox needs Python 3.11 or newer, found $$($(PYTHON) --version); see README, 'What you need'"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e '.[dev]'
	@touch $@
