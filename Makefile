.PHONY: install format check test slow docs

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

docs:  ## the pages, in build/docs; needs the extra docs
	python -m sphinx -W --keep-going -n -q -b html docs build/docs
