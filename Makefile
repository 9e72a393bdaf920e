# `make demo` and `make test` are all a fresh machine needs; both install into .venv first.
PYTHON ?= python3
BIN := .venv/bin

# Of `make gpu`: text to train on (default: the embedded articles), minutes of training, and other options.
TEXT ?=
GPU_MINUTES ?= 10
OPTIONS ?=

.PHONY: demo test test-slow gpu lint clean

demo: .venv/installed
	$(BIN)/pargolf run demo

# Files in their order: sorted by how many tests they have, those of few long ones would end it, one core idle.
test: lint
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

test-slow: .venv/installed
	$(BIN)/python -m pytest -m slow

gpu: .venv/installed
	$(BIN)/python benchmarks/gpu.py --gpu-minutes $(GPU_MINUTES) $(if $(TEXT),--text $(TEXT)) $(OPTIONS)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("pargolf needs Python 3.11 to 3.13") if not (3, 11) <= sys.version_info < (3, 14) else 0'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo,dev]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
