# `make demo` and `make test` need nothing but make, a C compiler and Python with its headers.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST_ARGS ?=
PORT ?= 0

.DEFAULT_GOAL := help
.PHONY: help install mongrel2 chromium demo test style types coverage bench clean

help:
	@echo 'make demo [PORT=8000]  run the chat example behind a real mongrel2'
	@echo 'make test              run every test (PYTEST_ARGS="-k wire" for some)'
	@echo 'make style types       ruff, mypy'
	@echo 'make coverage bench    what the tests reach, what things cost'
	@echo 'make clean             remove what the others made'

# A half-made environment has no stamp and is made anew.
$(STAMP): setup.py pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[speed,tests,bench,dev]'
	@touch $@

install: $(STAMP)

# Debian's package is installed where apt-get and the right to use it are there; else one line says what is missing.
# $(call need,COMMAND,PACKAGES,NAME of the variable to go without)
define need
	@if [ "$$GREENTX_WITHOUT_$(3)" = 1 ] || command -v $(1) >/dev/null; then exit 0; fi; \
	sudo=; [ "$$(id -u)" = 0 ] || sudo='sudo -n'; \
	if command -v apt-get >/dev/null && $$sudo true 2>/dev/null; then \
		echo 'installing $(2) with apt-get'; \
		install() { $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $(2); }; \
		{ install || { $$sudo apt-get update -qq && install; }; } >/dev/null 2>&1; \
	fi; \
	command -v $(1) >/dev/null || { \
		echo '$(1) is missing: install it (Debian, Ubuntu: apt-get install $(2)), or set GREENTX_WITHOUT_$(3)=1 to go without' >&2; \
		exit 1; }
endef

mongrel2:
	$(call need,mongrel2,mongrel2-core,MONGREL2)

# Only tests look at pages.
chromium:
	$(call need,chromedriver,chromium chromium-driver,CHROMIUM)

demo: install mongrel2
	@exec $(BIN)/python examples/chat.py --port $(PORT)

test: install mongrel2 chromium
	@$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(PYTEST_ARGS)

style: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: install
	@$(BIN)/mypy

coverage: install mongrel2 chromium
	@$(BIN)/python -m pytest --cov --cov-report=term $(PYTEST_ARGS)

bench: install mongrel2
	@set -e; for bench in benchmarks/bench_*.py; do echo "== $$bench"; $(BIN)/python "$$bench"; done

clean:
	rm -rf $(VENV) build dist htmlcov *.egg-info .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
