# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# As many test processes as there are cores for their threads.
THREADS := $(or $(OMP_NUM_THREADS),1)
WORKERS := $(shell $(PYTHON) -c "import os; print(max(1, (os.cpu_count() or 1) // $(THREADS)))")
# Waiting threads sleep instead of spinning, which would slow down every other process.
PYTEST := OMP_NUM_THREADS=$(THREADS) OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

.PHONY: demo test test-all fuzz check bench clean

demo: $(VENV)/installed
	$(BIN)/instructedit demo

test: $(VENV)/installed-dev
	$(PYTEST)

# With the tests marked slow, too.
test-all: $(VENV)/installed-dev
	$(PYTEST) -m ""

# Thousands of spoilt inputs; the table of figures also goes to build/fuzz.json.
fuzz: $(VENV)/installed-dev
	rm -rf build/fuzz
	INSTRUCTEDIT_FUZZ=$${INSTRUCTEDIT_FUZZ:-10000} OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/fuzz -n $(WORKERS) --tb=line

check: $(VENV)/installed-dev
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

bench: $(VENV)/installed
	$(BIN)/python benchmarks/speed.py

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch -c constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -e . -c constraints.txt
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]" -c constraints.txt
	touch $@

clean:
	rm -rf $(VENV) build dist
