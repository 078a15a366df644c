# Shorthands; every line works as well when typed.
PYTHON ?= python3

.PHONY: setup lint type test bench demo

setup:
	$(PYTHON) -m pip install -c constraints.txt -e '.[dev]'

lint:
	ruff format --check
	ruff check

type:
	mypy

test:
	pytest

bench:
	for script in $(wildcard benchmarks/*.py); do $(PYTHON) $$script || exit 1; done

demo:
	monai-attention demo
