PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test coverage lint docs bench kills stress planted clean

help:
	@echo "make install   build .venv from requirements.lock"
	@echo "make demo      train the speech net with two replicas for a minute"
	@echo "make test      lint, then all tests"
	@echo "make coverage  the pure packages' tests, and that they reach 95 % of the branches"
	@echo "make lint      ruff, mypy, import-linter, and the site"
	@echo "make docs      build the documentation into site/"
	@echo "make bench     measure training, the parameter server, the wire and checkpoints"
	@echo "make kills     kill real runs at 200 random instants and at every operation on files; every account is checked"
	@echo "make stress    random clusters and faults in virtual time, every rule checked; SEEDS=10000 takes half an hour"
	@echo "make planted   plant bugs, one at a time, that random clusters must find (about half an hour)"
	@echo "make clean     remove caches and builds; .venv stays"

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "distbelief needs Python 3.11 or newer; name one: make install PYTHON=python3.11" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv >/dev/null 2>&1 || { \
	  echo "$(PYTHON) cannot make a virtual environment; install its venv module (Debian: python3-venv)" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: install
	$(BIN)/distbelief train speech --replicas 2 --seconds 60

lint: install docs
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# Linting comes first, so that the tests' summary is the last thing printed. The tests of Ray share a cluster.
test: lint
	$(BIN)/pytest -n 2 --dist loadgroup

PURE := src/distbelief/server/*,src/distbelief/downpour/*,src/distbelief/ports.py,src/distbelief/allocation.py,src/distbelief/chance.py,src/distbelief/errors.py,src/distbelief/engines/controller.py,src/distbelief/engines/outstanding.py,src/distbelief/engines/due.py,src/distbelief/engines/replica_slot.py,src/distbelief/engines/supervision.py

coverage: install
	$(BIN)/pytest --quiet --cov --cov-branch --cov-report= tests/server tests/downpour tests/paper tests/conformance tests/engines/*.py tests/test_chance.py
	$(BIN)/coverage report --include='$(PURE)' --fail-under=95

# Strict: a link that leads nowhere is an error. The variable silences a notice about what comes after mkdocs.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: install
	$(BIN)/python -m benchmarks.throughput
	$(BIN)/python -m benchmarks.server
	$(BIN)/python -m benchmarks.wire
	$(BIN)/python -m benchmarks.checkpoints

kills: install
	$(BIN)/python -m tests.stress.kills
	$(BIN)/python -m tests.stress.operations

SEEDS ?= 1000
FIRST ?= $(shell date +%s)

# Other seeds each time. A failure prints the command that replays it.
stress: install
	$(BIN)/python -m tests.stress.clusters --seeds $(SEEDS) --first $(FIRST)

planted: install
	$(BIN)/python -m tests.stress.planted

clean:
	rm -rf build dist site src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage*
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
