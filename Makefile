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
	$(PYTHON) -m benchmarks.networks --save
	$(PYTHON) -m benchmarks.inference --case memory-117 --case air --case length --save  # brain: of an image of yours

demo:
	monai-attention demo
