.PHONY: help test test-fast lint format docs notebooks

help:  ## list the tasks
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

test:  ## run all tests (15 to 18 minutes on two cores)
	pytest

test-fast:  ## run the tests that are not marked slow (about 4 minutes on two cores)
	pytest -m "not slow"

lint:  ## check style, spelling and types
	ruff check
	ruff format --check
	codespell
	mypy

format:  ## format the code and fix what ruff can fix
	ruff check --fix
	ruff format

notebooks:  ## run the notebooks of the documentation and store their outputs
	python -m tests.helpers.notebooks

docs:  ## build the documentation into docs/_build
	sphinx-build -W --keep-going -q docs docs/_build
