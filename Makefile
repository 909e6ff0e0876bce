# Two commands do all set-up by themselves on a fresh clone: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The smallest machine has two cores: two test workers of one thread each, and two threads for the demo.
TEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test test-full lint clean

$(VENV)/.demo-installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,ui,ray,scenes,quantize,bnb]'
	touch $@ $(VENV)/.demo-installed

demo: $(VENV)/.demo-installed  ## the main job, from rendered clips to scored videos
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} $(BIN)/reelwright demo

lint: $(VENV)/.installed
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/pyright
	$(BIN)/lint-imports

test: lint  ## lint, types, import contract, tests
	$(TEST) -m "not full"

test-full: lint  ## the same with the long counts
	$(TEST)

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
