# Everything runs in its own .venv; python3 must be 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test test-django check format docs bench bench-base chaos soak clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("semtask needs Python 3.11 or newer, this is %s" % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## run the main job on real input: index a source tree, with a kill -9 in the middle (DIR=folder)
	@$(BIN)/python -u -m demo $(if $(DIR),--dir '$(DIR)')

check: $(STAMP) ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check ## the checks, then all tests (REQUIRE=bubblewrap: fail what needs it if it is missing)
	$(BIN)/python -m pytest -n 2 -m "not alone" --session-timeout=2400 $(REQUIRE:%=--require=%)
	$(BIN)/python -m pytest -m alone

# Django 6 has tasks of its own and needs Python 3.12 or newer; the rest is tested with the oldest supported Python.
.venv-django/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Django 6 needs Python 3.12 or newer: make test-django PYTHON=python3.12" if sys.version_info < (3, 12) else 0)'
	$(PYTHON) -m venv .venv-django
	.venv-django/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable . django hypothesis pytest pytest-timeout
	@touch $@

test-django: .venv-django/.installed ## the tests with Django 6 (PYTHON=python3.12 or newer)
	.venv-django/bin/python -m pytest --require=django6 tests/contrib/test_django.py

format: $(STAMP) ## format the code and fix what the linter can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(STAMP) ## write the generated reference again
	$(BIN)/python docs/generate.py

bench: $(STAMP) ## measure, side by side with the limits of this machine
	$(BIN)/python -m benchmarks

bench-base: $(STAMP) ## measure this tree beside BASE=commit, by turns in one run (ROUNDS=5)
	@test -n '$(BASE)' || { echo 'say which commit: make bench-base BASE=<commit>'; exit 2; }
	@$(BIN)/python -m benchmarks.base '$(BASE)' --rounds $(or $(ROUNDS),5)

chaos: $(STAMP) ## kill -9 at random moments and at every step, floods, fuzzing, power cuts: the long versions, and a table of their figures
	@$(BIN)/python -u -m tests.chaos

soak: $(STAMP) ## steady load with faults for MINUTES=10; fails if anything grows; samples and plot in OUT=soak
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[soak]'
	@$(BIN)/python -u -m tests.soak --minutes $(or $(MINUTES),10) --out '$(or $(OUT),soak)'

clean: ## remove what the targets made
	rm -rf .venv .venv-django build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
