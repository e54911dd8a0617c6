.PHONY: install format check test slow docs campaign mutation

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

campaign:  ## at most 30 minutes of faults: kills, flips, full disks, crafted files, two writers, bad environments, random spaces
	PYTHONPATH=.:tests python -m campaign --minutes 30 --out build/campaign.json

mutation:  ## 400 small mutants against the tests of their packages; hours, resumable
	nice -n 19 python benchmarks/mutation.py --out build/mutation.jsonl --sample 400
