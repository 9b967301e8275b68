# Everything a contributor runs. `make check` is what CI runs.
PYTHON ?= python
export HF_HUB_OFFLINE = 1

.PHONY: check format lint types layers test test-fast screenshots

check: format lint types layers test

format:
	$(PYTHON) -m ruff format --check .

lint:
	$(PYTHON) -m ruff check .

types:
	$(PYTHON) -m mypy

layers:
	$(dir $(shell command -v $(PYTHON)))lint-imports

test:
	$(PYTHON) -m pytest -n 2 --dist worksteal

test-fast:
	$(PYTHON) -m pytest -n 2 --dist worksteal -m "not slow and not browser and not distributed and not gpu"

screenshots:  # of the page, into docs/pictures
	$(PYTHON) -m tests.browser.screenshots
