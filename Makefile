# The few commands. Each sets up .venv by itself and does nothing twice.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Where development data lies (CIFAR-100 and others); tests and demo never need it.
export OFFRAMP_DATA ?= data

.PHONY: demo test test-all coverage lint format bench docs clean

demo: $(READY)  ## the whole road on embedded data: train, calibrate, measure, report
	$(BIN)/offramp demo

test: $(READY)  ## the suite, about a quarter of an hour on two cores
	$(BIN)/pytest -n 2 --durations=40

coverage: $(READY)  ## the suite with line coverage, half as long again
	$(BIN)/pytest -n 2 --cov --cov-report=term:skip-covered --cov-fail-under=90

test-all: $(READY)  ## with the slow matrices
	$(BIN)/pytest -m "slow or not slow"

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## measure what benchmarks/ holds; writes benchmarks/results
	$(BIN)/python benchmarks/run.py

docs: $(READY)  ## tables and plots of README and docs/ from committed results
	$(BIN)/python benchmarks/readme.py

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Offramp needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch torchvision timm --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache .coverage
