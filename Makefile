# `make demo` and `make test` need nothing but make and Python; no requirement of theirs is compiled.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The demo's, which has no tools for tests. Where there is the other one, that one serves.
DEMO_VENV := .venv-demo
# Files, not tests, are shared out: a file's fixtures are set up once. Four, also on fewer processors: most of them wait.
# In our own order (tests/conftest.py), and not by the number of tests: those files that take longest have few.
PYTEST := $(BIN)/python -m pytest --numprocesses 4 --dist loadfile --no-loadscope-reorder
PYTEST_ARGS ?=
PORT ?= 0
# What `make chaos` runs; for how long `make soak` and `make fuzz` do, and options of the latter.
CHAOS ?=
FUZZ ?=
SECONDS ?= 600

.DEFAULT_GOAL := help
.PHONY: help install mongrel2 mongrel2-if-possible chromium wrk redis demo test style types coverage chaos soak fuzz bench clean

help:
	@echo 'make demo [PORT=8000]  run a chat (installs some 40 MB); MONGREL2=1: behind the real mongrel2'
	@echo 'make test              run every test (PYTEST_ARGS="-k pipeline" for some)'
	@echo 'make style types       ruff, mypy'
	@echo 'make chaos             faults of all kinds, each request counted (CHAOS="kill-mongrel2 kills=50" for one)'
	@echo 'make soak              ten minutes of mixed load: memory stays flat (SECONDS=60); draws soak.svg'
	@echo 'make fuzz              ten minutes of what nobody would send, for all that reads it (SECONDS=60)'
	@echo 'make coverage bench    what the tests reach, what things cost'
	@echo 'make clean             remove what the others made'

# Nothing happens where it is there and complete.
install:
	@$(PYTHON) .ci/environment.py $(VENV) speed,tests,bench,dev

# Debian's package is installed where apt-get and the right to use it are there; else one line says what is missing.
# $(call need,COMMAND,PACKAGES,NAME of the variable to go without[,what to say where make goes on without it anyway])
# Tests that need what is missing are skipped, and pytest's last lines say so; in CI (CI=true) nothing is skipped.
LEFT_OUT := $(if $(filter 1 true,$(CI)),, (what needs it is left out))
define need
	@if [ "$$GREENTX_WITHOUT_$(3)" = 1 ] || command -v $(1) >/dev/null; then exit 0; fi; \
	sudo=; [ "$$(id -u)" = 0 ] || sudo='sudo -n'; \
	if command -v apt-get >/dev/null && $$sudo true 2>/dev/null; then \
		echo 'installing $(2) with apt-get'; \
		install() { $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $(2); }; \
		{ install || { $$sudo apt-get update -qq && install; }; } >/dev/null 2>&1; \
	fi; \
	command -v $(1) >/dev/null || { \
		echo '$(1) is missing$(4): install it (Debian, Ubuntu: apt-get install $(2)), or set GREENTX_WITHOUT_$(3)=1 to go without' >&2; \
		exit $(if $(4),0,1); }
endef

mongrel2:
	$(call need,mongrel2,mongrel2-core,MONGREL2)

# For tests, which have the embedded front end without it.
mongrel2-if-possible:
	$(call need,mongrel2,mongrel2-core,MONGREL2,$(LEFT_OUT))

# Only tests look at pages.
chromium:
	$(call need,chromedriver,chromium chromium-driver,CHROMIUM,$(LEFT_OUT))

# One benchmark needs it, and its tests.
wrk:
	$(call need,wrk,wrk,WRK, (what needs it is left out))

# Only tests need one here; an application's is elsewhere.
redis:
	$(call need,redis-server,redis-server,REDIS,$(LEFT_OUT))

demo: $(if $(filter 1,$(MONGREL2)),mongrel2)
	@venv=$(VENV); \
	if ! { [ -e $(VENV)/.installed ] && $(BIN)/python -c 'import greentx, httptools' 2>/dev/null; }; then \
		venv=$(DEMO_VENV); \
		$(PYTHON) .ci/environment.py $$venv edge || exit; \
	fi; \
	exec $$venv/bin/python -m greentx demo --port $(PORT) $(if $(filter 1,$(MONGREL2)),--mongrel2)

test: install mongrel2-if-possible chromium wrk redis
	@$(PYTEST) $(PYTEST_ARGS)

style: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: install
	@$(BIN)/mypy

coverage: install mongrel2-if-possible chromium wrk redis
	@$(PYTEST) --timeout 180 --cov --cov-report= $(PYTEST_ARGS)
	@echo 'protocol/, of which 95 % of lines and branches are a must:'
	@$(BIN)/coverage report --include='greentx/protocol/*' --fail-under=95
	@echo 'all, of which 90 % are:'
	@$(BIN)/coverage report --fail-under=90

chaos: install mongrel2
	@$(BIN)/python tests/chaos/run.py $(CHAOS)

soak: install mongrel2
	@$(BIN)/python tests/chaos/soak.py --seconds $(SECONDS) --plot soak.svg

bench: install mongrel2 wrk
	@set -e; for bench in benchmarks/bench_*.py; do echo "== $$bench"; $(BIN)/python "$$bench"; done

# Coverage-guided where atheris has a wheel for this Python; else hypothesis makes the inputs up.
fuzz: install
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary :all: atheris >/dev/null 2>&1 || \
		echo 'there is no atheris for this Python: hypothesis makes the inputs up'
	@$(BIN)/python tests/fuzz/fuzz.py --seconds $(SECONDS) $(FUZZ)

clean:
	rm -rf $(VENV) $(VENV).lock $(DEMO_VENV) $(DEMO_VENV).lock build dist fuzz-findings htmlcov *.egg-info soak.svg .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
