# What README and CI call. Everything is installed into .venv, in the versions of constraints.txt.
.DEFAULT_GOAL := help
.PHONY: help run test coverage slow browser check ui bench bench-decisions clean repository environment

PYTHON ?= python3
VENV := .venv
BENCH_VENV := .venv-bench
BIN := $(VENV)/bin
# An environment that is a link, as of `regraft new`, is that of another checkout, which installs it.
LINKED := $(shell test -L $(VENV) && echo yes)
INSTALLED := $(if $(LINKED),,$(VENV)/.installed)
INSTALLED_DEV := $(if $(LINKED),,$(VENV)/.installed-dev)
# Test files share a few processes, each computing in one thread; a test that measures has its own.
PYTEST := OMP_NUM_THREADS=1 REGRAFT_THREADS=1 pytest --numprocesses=logical --maxprocesses=4 --dist=loadfile
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# What needs tests/, which a project of `regraft new` lacks.
ABSENT := $(if $(wildcard tests),,test coverage slow browser bench bench-decisions)
ASKED := $(filter $(ABSENT),$(MAKECMDGOALS))
$(if $(ASKED),$(error make $(firstword $(ASKED)) needs tests/, which is not here; type it in the checkout of Regraft that this project was made from))
export PATH := $(CURDIR)/$(BIN):$(PATH)

help: ## show this help
	@awk -F ':.*## ' -v absent=' $(ABSENT) ' '/^[a-z-]+:.*## / && !index(absent, " " $$1 " ") {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  Facts of the machine are environment variables; results keep their meaning and change by rounding (README tells what more):"
	@echo "  REGRAFT_DEVICE     auto | cpu | cuda"
	@echo "  REGRAFT_THREADS    compute threads (0: as many as cores)"
	@echo "  REGRAFT_WORKERS    image decoding threads (0: as REGRAFT_THREADS)"
	@echo "  REGRAFT_PROCESSES  of extract and finetune on this host, one a GPU (1)"
	@echo "  REGRAFT_ENGINE     auto | onnxruntime | compiled | torch: what runs frozen networks"
	@echo "  REGRAFT_SCRATCH    folder of checkpoints and cached activations (.regraft)"

run: repository environment $(INSTALLED) ## set up and run the pipeline (dvc repro); prints where report and model are
	@python -m flows.cli run

test: environment $(INSTALLED_DEV) ## set up and run the tests
	@$(PYTEST)

coverage: $(INSTALLED_DEV) ## the same, with the lines that no test reaches (half as long again)
	@$(PYTEST) --cov=tasks --cov-report=term-missing:skip-covered

slow: $(INSTALLED_DEV) ## run the longer tests
	@$(PYTEST) --numprocesses=3 -m "slow and not gpu and not browser"

browser: $(INSTALLED_DEV) ## run the tests that need chromium (Debian: apt-get install chromium)
	@$(PYTEST) -m browser

check: $(INSTALLED_DEV) ## ruff, ruff format, mypy --strict
	@ruff check .
	@ruff format --check .
	@mypy

ui: repository environment $(INSTALLED) ## serve the flows on a Prefect server at 127.0.0.1
	@python -m flows.serve

bench: $(INSTALLED) $(BENCH_VENV)/.installed ## compare with other libraries (BENCH=--help for options); writes docs/benchmarks.md
	@PYTHONPATH=tests python -m bench $(BENCH)

bench-decisions: $(INSTALLED) ## try every way to transfer on many sets, a night (BENCH=--help for options)
	@PYTHONPATH=tests python -m bench.decisions $(BENCH)

clean: ## remove environments, caches, checkpoints, Prefect's history; data, results, DVC's cache stay
	rm -rf $(VENV) $(BENCH_VENV) .regraft .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.* *.egg-info

repository:
	@git rev-parse --git-dir > /dev/null 2>&1 || grep -qs no_scm .dvc/config.local || { \
		echo "$(CURDIR) is no git repository, and DVC works in one. Type:"; \
		echo "  git init && git add --all && git commit --message Start"; \
		echo "or, to do without experiments, write [core] and below it no_scm = true into .dvc/config.local"; exit 1; }

environment:
	@test ! -L $(VENV) || test -e $(BIN)/dvc || { \
		echo "$(VENV) leads to an environment that is not there. For one of this project's own, type:"; \
		echo "  rm $(VENV) && make $(or $(MAKECMDGOALS),run)"; exit 1; }
	@test ! -e $(BIN)/dvc || $(BIN)/dvc --version > /dev/null 2>&1 || { \
		echo "$(VENV) was made for another place or another Python and does not work here. Type:"; \
		echo "  rm -r $(VENV) && make $(or $(MAKECMDGOALS),run)"; exit 1; }

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is $$($(PYTHON) --version); Python 3.11 or newer is needed: make PYTHON=python3.11 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Installing the pinned packages into $(VENV) (torch is large; this happens once)"
	@$(PIP_INSTALL) --editable ".[bundled]"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@$(PIP_INSTALL) --editable ".[bundled,dev]"
	@touch $@

# The peers never enter Regraft's own environment.
$(BENCH_VENV)/.installed: tests/bench/requirements.txt constraints.txt
	@$(PYTHON) -m venv $(BENCH_VENV)
	@$(BENCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --requirement tests/bench/requirements.txt
	@touch $@
