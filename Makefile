# The project's commands. `make` alone lists them.
# It uses only what GNU make 3.81 has, the version that macOS ships.

SHELL := /bin/sh
PYTHON ?= python3

VENV := .venv
BIN := $(VENV)/bin
LOCKS := requirements.txt requirements-fleet.txt requirements-dev.txt
# Exists only if the environment is complete and matches the locks.
ENVIRONMENT := $(VENV)/.stamp
READERS_VENV := .venv-readers
READERS_LOCK := requirements-readers.txt
READERS_ENVIRONMENT := $(READERS_VENV)/.stamp

COMPILE := pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -q

# Otherwise uv downloads an interpreter if none of the installed ones fits.
export UV_PYTHON_DOWNLOADS := never
# With Python's cache, processes need not compile the project and the tests again: this saves the suite CPU time.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo up down test test-fast simulate test-soak fleet-test test-readers mwaa lint bench docs lock check-lock

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

demo: HOURS ?= 3
demo: OBJECTS ?= 300
demo: PARALLELISM ?= 8
demo: S3 ?= rclone
demo: LAYOUT ?= plain
demo: COMPRESSION ?= none
demo: RECOMPRESS ?= false
demo: $(ENVIRONMENT) ## roll up generated raw hours in a real Airflow, and print a table of them (HOURS=3 OBJECTS=300 PARALLELISM=8 S3=rclone|ministack|moto LAYOUT=plain|groups|cloudtrail COMPRESSION=none|zstd|gzip RECOMPRESS=true)
	@$(BIN)/python -m dev.demo run --hours '$(HOURS)' --objects '$(OBJECTS)' --parallelism '$(PARALLELISM)' --s3 '$(S3)' --layout '$(LAYOUT)' --compression '$(COMPRESSION)' $(if $(filter true,$(RECOMPRESS)),--recompress)

up: S3 ?= rclone
up: $(ENVIRONMENT) ## start the same Airflow, leave it running, and print its address (S3=rclone|ministack|moto LAYOUT=plain|groups|cloudtrail)
	@$(BIN)/python -m dev.demo up --s3 '$(S3)' $(if $(LAYOUT),--layout '$(LAYOUT)')

down: $(ENVIRONMENT) ## stop what `make up` has started
	@$(BIN)/python -m dev.demo down

# One of the four workers mostly waits for the local stack, the others often for servers: two cores are enough.
test: $(ENVIRONMENT) ## run the whole test suite
	$(BIN)/python -m pytest -n 4 --no-loadscope-reorder

test-fast: $(ENVIRONMENT) ## run the unit and Dag tests that need no server: a minute at most
	$(BIN)/python -m pytest -n 3 --no-loadscope-reorder -m 'not slow' tests/unit tests/dags

simulate: SEEDS ?= 10000
simulate: FIRST ?= 0
simulate: $(ENVIRONMENT) ## simulate hours with faults and crashes, one for each seed, and check each (SEEDS=10000 FIRST=0)
	@$(BIN)/python -m simulation --seeds $(SEEDS) --first $(FIRST)

test-soak: $(ENVIRONMENT) ## run the tests that take too long for the suite
	$(BIN)/python -m pytest -m soak

fleet-test: $(ENVIRONMENT) ## run PostgreSQL, Redis, Airflow and Celery workers as in the compose file, and count their sockets
	$(BIN)/python -m pytest -m fleet -s tests/fleet

test-readers: $(ENVIRONMENT) $(READERS_ENVIRONMENT) ## read parts of every encoding with DuckDB, Spark and others; writes docs/READERS.md
	$(BIN)/python -m pytest -m readers tests/readers

mwaa: $(ENVIRONMENT) ## build the files for Amazon MWAA, in build/mwaa
	@$(BIN)/python -m deploy.mwaa build/mwaa

lint: $(ENVIRONMENT) check-lock ## check style, types, and that the locks match their inputs
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

bench: OBJECTS ?= 3000
bench: $(ENVIRONMENT) ## measure against boto3, s5cmd and others; writes build/bench*.json (OBJECTS=3000 ONLY=log-rollup,floor)
	$(BIN)/python -m benchmarks --objects $(OBJECTS) $(if $(ONLY),--only $(ONLY))
	$(if $(ONLY),,$(BIN)/python -m benchmarks restore --objects $(OBJECTS))
	$(if $(ONLY),,$(BIN)/python -m benchmarks grep --objects $(OBJECTS) --rounds 1)
	$(if $(ONLY),,$(BIN)/python -m benchmarks compression --objects $(OBJECTS) $(LOGS))

docs: $(ENVIRONMENT) ## write docs/REFERENCE.md and the figures of docs/RETENTION.md from the code
	@$(BIN)/python -m dev.reference
	@$(BIN)/python -m dev.retention

lock: $(ENVIRONMENT) ## resolve requirements*.in into the locks requirements*.txt (UPGRADE=1: to the newest releases)
	$(BIN)/uv $(COMPILE) $(if $(UPGRADE),--upgrade) requirements.in -o requirements.txt
	$(BIN)/uv $(COMPILE) $(if $(UPGRADE),--upgrade) requirements-fleet.in -o requirements-fleet.txt
	$(BIN)/uv $(COMPILE) $(if $(UPGRADE),--upgrade) requirements-dev.in -o requirements-dev.txt
	$(BIN)/uv $(COMPILE) $(if $(UPGRADE),--upgrade) requirements-readers.in -o $(READERS_LOCK)

# The copy starts from the present locks, and uv keeps their versions and hashes if the inputs allow it. So a new
# upstream release changes nothing, an edited input or lock does.
check-lock: $(ENVIRONMENT)
	@copy=$$(mktemp -d) && trap 'rm -rf "$$copy"' EXIT && \
	cp requirements*.in requirements*.txt "$$copy" && \
	uv="$(CURDIR)/$(BIN)/uv" && python="$(CURDIR)/$(BIN)/python" && \
	(cd "$$copy" && \
	"$$uv" $(COMPILE) --python "$$python" requirements.in -o requirements.txt && \
	"$$uv" $(COMPILE) --python "$$python" requirements-fleet.in -o requirements-fleet.txt && \
	"$$uv" $(COMPILE) --python "$$python" requirements-dev.in -o requirements-dev.txt && \
	"$$uv" $(COMPILE) --python "$$python" requirements-readers.in -o $(READERS_LOCK)) && \
	for lock in $(LOCKS) $(READERS_LOCK); do \
		diff -u "$$lock" "$$copy/$$lock" || { echo "$$lock does not match its .in file: run make lock"; exit 1; }; \
	done

# Without its stamp an environment is incomplete and is created from scratch. A complete one is updated to the new
# locks; its stamp is removed meanwhile. awk takes uv with its hashes out of the lock.
$(ENVIRONMENT): $(LOCKS)
	@command -v "$(PYTHON)" >/dev/null || { \
		echo "$(PYTHON) is missing: install Python 3.11, 3.12 or 3.13, or name one, as in make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else "Log Rollup needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is %d.%d: name another one, as in make PYTHON=python3.12" % v)'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) has no venv or no ensurepip: install them (on Debian and Ubuntu the package python3-venv)" >&2; exit 1; }
	@if [ -f $@ ]; then rm $@; else rm -rf $(VENV) && $(PYTHON) -m venv $(VENV) && \
		awk '/^uv==/ { found = 1 } found { print; if (!/\\$$/) exit }' requirements-dev.txt > $(VENV)/uv.txt && \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/uv.txt; fi
	$(BIN)/uv pip sync --quiet --require-hashes --python $(BIN)/python $(LOCKS)
	@touch $@

# The readers have an environment of their own, as they are large and need other versions.
$(READERS_ENVIRONMENT): $(READERS_LOCK) | $(ENVIRONMENT)
	@rm -rf $(READERS_VENV) && $(BIN)/uv venv --quiet --python $(BIN)/python $(READERS_VENV)
	$(BIN)/uv pip sync --quiet --require-hashes --python $(READERS_VENV)/bin/python $(READERS_LOCK)
	@touch $@
