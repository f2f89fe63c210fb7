# Everything a developer does here. Needs Python 3.11, 3.12 or 3.13, make and git, nothing else: `make run`, `make demo` and `make test`
# set up what they need by themselves, once, and again when the lock or pyproject.toml changes.

VENV    := .venv
BIN     := $(VENV)/bin
JUDGES  := .venv-deploy
READY   := $(VENV)/.ready
WORKERS ?= 4
# Four processes by default, for most tests wait most of the time; `make test WORKERS=0` runs in one. loadgroup keeps tests together that share an xdist_group mark, by tests/order.py.
XDIST   ?= -n $(WORKERS) --dist loadgroup
PYTEST   = $(BIN)/python -m pytest $(XDIST)
# More for pytest or taskflow: `make test ARGS='-k outbox'`, `make run ARGS='--log-level debug'`.
ARGS    ?=
COMPILE  = $(BIN)/python -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --custom-compile-command 'make $@'

.DEFAULT_GOAL := help
.PHONY: help setup run demo test test-all test-rest test-fast test-pythons newcomer durations snapshots faults faults-nightly fuzz \
	bench bench-neighbours bench-peers lint format type drift schemas docs deploy-check check lock deploy-lock peers-lock clean
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules

help: ## Show this list
	@echo 'nats-taskflow: durable flows over NATS JetStream. What make can do here:'
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "Start with 'make demo' (the whole story, under a minute) or 'make run' (a worker and a server to play with)."

setup: $(READY) ## Make .venv with everything the lock pins (run, demo and test do it); PYTHON=… instead of the newest
	@echo "$(VENV) is ready: $$($(BIN)/taskflow version)"

run: $(READY) ## Run a worker with a NATS server of its own; data in ./.taskflow (Ctrl-C stops it)
	@exec $(BIN)/taskflow dev $(ARGS)

demo: $(READY) ## Tell the whole story on real parts: park, kill -9, reply, restart, resume
	@exec $(BIN)/taskflow demo $(ARGS)

test: $(READY) ## Run what finds most bugs in five minutes: expensive repetitions by turns, another share with each commit
	@TASKFLOW_TESTS=quick $(PYTEST) $(ARGS)

test-all: $(READY) ## Run every test in its whole size: some fifteen minutes
	@TASKFLOW_TESTS=all $(PYTEST) $(ARGS)

test-rest: $(READY) ## Run what test-all runs and test does not, or not whole
	@TASKFLOW_TESTS=rest $(PYTEST) $(ARGS)

test-fast: $(READY) ## Run the tests that start no other process and take no time
	@TASKFLOW_TESTS=quick $(PYTEST) --ignore=tests/e2e -m 'not e2e and not slow' $(ARGS)

durations: $(READY) ## Write tests/durations.tsv anew, by which the tests are ordered: the longest first
	@TASKFLOW_TESTS=all $(PYTEST) --write-durations $(ARGS)

snapshots: $(READY) ## Write tests/snapshots/ again: what each surface says, word for word (read the diff before you commit it)
	@TASKFLOW_SNAPSHOTS=write $(BIN)/python -m pytest -q -k word_for_word $(ARGS)

test-pythons: $(READY) ## Run the unit tests on each other supported Python that is here, in an environment of its own
	@TASKFLOW_TESTS=quick .ci/test-pythons $(XDIST) $(ARGS)

newcomer: $(READY) ## Do what a newcomer does: clone the commit, set it up from nothing, demo; and the same with its wheel
	@.ci/newcomer

faults: $(READY) ## Run the fault scenarios, or one: make faults SCENARIO=kill-worker (SCENARIO=list names them)
	@TASKFLOW_TESTS=all $(BIN)/python -m pytest tests/faults -q $(if $(SCENARIO),--scenario '$(SCENARIO)') $(ARGS)

faults-nightly: $(READY) ## The same with ten times the faults: up to an hour (SCENARIO, ARGS, TASKFLOW_SEED as above)
	@TASKFLOW_TESTS=nightly $(BIN)/python -m pytest tests/faults -q $(if $(SCENARIO),--scenario '$(SCENARIO)') $(ARGS)

fuzz: $(READY) ## Read a million spoilt messages, nothing may be raised (make fuzz ARGS='--inputs 50000 --seed 2')
	@$(BIN)/python -m tests.fuzz.decoder --inputs 1000000 $(ARGS)

bench: $(READY) ## Measure the worker against disk, SQLite and broker: some 5 minutes (ARGS=--full: also a million waiting flows)
	@$(BIN)/python -m bench.run $(ARGS)

bench-neighbours: $(READY) ## Measure a quiet agent beside each flood of another's (ARGS='--only status': --help lists them)
	@$(BIN)/python -m bench.neighbours $(ARGS)

bench-peers: $(READY) ## Measure the worker beside other programs of its kind, which go into bench/.venv-peers
	@$(BIN)/python -m bench.run --peers $(ARGS)

lint: $(READY) ## Check style: ruff's rules and its formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(READY) ## Format the code, and repair what ruff can
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

type: $(READY) ## Check types: mypy --strict over worker and tests
	@$(BIN)/mypy

drift: $(READY) ## Check that the lock satisfies pyproject.toml, and that schemas/ and docs/ are what the code generates
	@$(BIN)/python -m pip check --disable-pip-version-check
	@$(BIN)/python -m docs.generate.schemas --check schemas
	@$(BIN)/python -m docs.generate --check docs
	@$(BIN)/python deploy/container/locks.py --check

docs: $(READY) ## Write the reference pages of docs/ again: commands, settings, metrics, errors, events, dead letters, log
	@$(BIN)/python -m docs.generate docs

schemas: $(READY) ## Write schemas/ again from the message types
	@$(BIN)/python -m docs.generate.schemas schemas

deploy-check: $(JUDGES)/.ready ## Have hadolint, kubernetes-validate, checkov and bandit judge deploy/ and the code (a minute more the first time)
	@$(JUDGES)/bin/python deploy/check.py

check: ## Run what a change has to pass before it is merged: lint, type, drift, newcomer, deploy-check, test-pythons, test, test-rest
	@./.ci/run

lock: $(BIN)/uv ## Pin again what pyproject.toml allows (make lock ARGS=--upgrade takes the newest)
	@$(COMPILE) pyproject.toml --extra dev --extra speed --extra mcp --extra otel --group test --output-file requirements.lock $(ARGS)

deploy-lock: $(BIN)/uv ## Pin the judges of deploy-check again
	@cd deploy && ../$(COMPILE) requirements-check.in --output-file requirements-check.txt $(ARGS)

peers-lock: $(BIN)/uv ## Pin the peers of bench-peers again
	@cd bench/peers && ../../$(COMPILE) requirements.in --output-file requirements.txt $(ARGS)

clean: ## Remove what make made: every .venv, caches, build results (never ./.taskflow, which is data)
	@rm -rf $(VENV) .venv-3.* $(JUDGES) bench/.venv-peers build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.*
	@find worker tests -type d -name __pycache__ -prune -exec rm -rf {} +

# Apart from .venv: checkov holds back libraries that the tests need newer.
$(JUDGES)/.ready: deploy/requirements-check.txt | $(READY)
	@echo "Setting up $(JUDGES) (once; about a minute) ..." >&2
	@$(BIN)/python -m venv --clear $(JUDGES)
	@$(JUDGES)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --require-hashes --requirement deploy/requirements-check.txt
	@$(JUDGES)/bin/python -m pip check --disable-pip-version-check
	@touch $@

# Another PYTHON than that of .venv makes it anew.
ifneq ($(PYTHON),)
ifneq ($(shell $(PYTHON) -V 2>&1 || true),$(shell $(BIN)/python -V 2>&1))
.PHONY: $(READY)
endif
endif

$(READY): requirements.lock pyproject.toml
	@.ci/environment $(VENV) $(PYTHON)

$(BIN)/uv: | $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'

# What `make test-pythons` makes of each other Python.
.venv-3.%/.ready: requirements.lock pyproject.toml
	@.ci/environment .venv-3.$* $(PYTHON)
