.PHONY: install format check test slow

install:  ## set up for development
	python -m pip install -e '.[dev]'
	pre-commit install

format:
	ruff check --fix .
	ruff format .

check:  ## what every commit must pass
	ruff check .
	ruff format --check .
	mypy
	pytest -m "not slow"

test:
	pytest

slow:
	pytest -m slow
