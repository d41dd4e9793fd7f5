# `make test` or `make demo` is all that a fresh clone needs: the environment is made on the way.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUNS := $(VENV)/.runs
INSTALLED := $(VENV)/.installed
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
ARGS ?=
MINUTES ?= 5
SEED ?=
PLAN ?=
FULL ?=

.PHONY: help demo bench test test-quick scenarios mutants coverage chaos
.PHONY: lint format docs pictures kafka constraints clean

help:
	@echo "make demo        the whole pipeline with nothing installed: embedded Kafka, generated events, mock Segment"
	@echo "make bench       what forwarding an event costs, on a real Kafka, against a yardstick and a floor"
	@echo "make test        every test, with coverage (ARGS='tests/core -k offsets' for some of them)"
	@echo "make test-quick  all but the whole-pipeline tests"
	@echo "make scenarios   the whole-pipeline tests; FULL=1 for faults of minutes and sessions as they are by default"
	@echo "make mutants     small wrong versions of the code, each of which a test must find (ARGS=messageId for some)"
	@echo "make coverage    every test, and where coverage is missing as pages in htmlcov/"
	@echo "make chaos       everything goes wrong at random for MINUTES=5; SEED=n or PLAN=report.json: the same once more"
	@echo "make lint        ruff, mypy and the contract of who imports whom"
	@echo "make format      put the code in its form"
	@echo "make docs        write what is made of the code: docs/metrics.md and the dashboards"
	@echo "make pictures    draw the dashboards of a bad day, and the console after a change, into docs/dashboards/"
	@echo "make kafka       a real Kafka on loopback until Ctrl-C (ARGS='--port 9092')"
	@echo "make constraints write constraints.txt anew, with the newest versions that pyproject.toml allows"
	@echo "make clean       remove the environment and what tools left behind"

demo: $(RUNS)
	@$(BIN)/streamer demo $(ARGS)

bench: $(INSTALLED)
	PYTHONPATH=tests $(BIN)/python benchmarks/end_to_end.py $(ARGS)

test: $(INSTALLED)
	$(BIN)/pytest --cov --cov-report=term $(ARGS)

test-quick: $(INSTALLED)
	$(BIN)/pytest -m "not e2e" $(ARGS)

scenarios: $(INSTALLED)
	FULL=$(FULL) $(BIN)/pytest tests/scenarios $(ARGS)

mutants: $(INSTALLED)
	$(BIN)/python tests/mutants.py $(ARGS)

coverage: $(INSTALLED)
	$(BIN)/pytest --cov --cov-report=term --cov-report=html $(ARGS)

chaos: $(INSTALLED)
	@PYTHONPATH=tests $(BIN)/python -m chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) \
		$(if $(PLAN),--plan $(PLAN)) $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(INSTALLED)
	PYTHONPATH=tests $(BIN)/python tests/metrics_page.py
	$(BIN)/python dashboards/generate.py

pictures: $(INSTALLED)
	PYTHONPATH=tests $(BIN)/python dashboards/draw.py $(ARGS)
	$(BIN)/python dashboards/cycle.py

kafka: $(INSTALLED)
	@PYTHONPATH=tests $(BIN)/python -m kafka_broker $(ARGS)

# The environment is made once, and again when a requirement or a version changes: first what the demo needs, so that it
# runs soon, then the rest.
$(RUNS): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
		echo "streamer needs Python 3.11 or newer, and there is no $(PYTHON). Name another: make PYTHON=python3.12" >&2; \
		exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "streamer needs Python 3.11 or newer, and $(PYTHON) is `$(PYTHON) --version 2>&1`." \
			"Name another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) has no venv module. Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "Installing into $(VENV): once, about half a minute" >&2
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) pip
	@$(INSTALL) --build-constraint constraints.txt --editable '.[demo]'
	@touch $@

$(INSTALLED): $(RUNS)
	@echo "Installing what tests and lint need: once, about half a minute" >&2
	@$(INSTALL) --build-constraint constraints.txt --editable '.[dev]'
	@touch $@

constraints:
	rm -rf build/constraints
	$(PYTHON) -m venv build/constraints
	build/constraints/bin/pip install --quiet --upgrade pip
	build/constraints/bin/pip install --quiet --editable '.[dev]' hatchling
	@{ sed '/^[^#]/,$$d' constraints.txt; \
		build/constraints/bin/pip freeze --all --exclude altis-streamer --exclude setuptools; } > build/constraints.txt
	mv build/constraints.txt constraints.txt

clean:
	rm -rf $(VENV) build dist htmlcov .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache
