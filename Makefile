# Each target works as the first command on a machine that has only Python 3.11+, venv and make.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test venv clean

demo: venv
	rm -rf demo-out
	$(BIN)/distill demo --out demo-out

test: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n 2 --dist worksteal

venv: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv demo-out .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
