# Every target makes its own virtual environment in $(VENV) and installs what it needs, once.
#
#   make demo [ARGS="--nodes 4 --port 5000 | --check"]    make test [ARGS="-k session -x"]
#   make bench [ARGS="--quick"]                           make nemesis [ARGS="-k resets"]
#   make bench-scale [ARGS="--clients 20000 --nodes 3"]
#   make fuzz [SECONDS=60] [ARGS="batch link"]
#   PYTHON=python3.13 VENV=.venv-3.13 make test

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
MINUTES ?= 30
SECONDS ?= 60

BIN := $(VENV)/bin
VENDOR := examples_flask/chat/static/vendor
SOURCES := gevent_mesh discovery examples_flask benchmarks tests noxfile.py

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PRECIOUS: $(VENV)/.installed-%
.PHONY: help demo test nemesis soak fuzz check lint types format bench bench-scale figures vendor clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 20

demo: $(VENV)/.installed-demo vendor  ## a chat on several servers; ARGS=--check proves it and ends
	$(BIN)/gevent-mesh demo $(ARGS)

test: $(VENV)/.installed-test  ## the whole suite
	$(BIN)/python -m pytest $(ARGS)

nemesis: $(VENV)/.installed-test  ## every fault at full size (half an hour); ARGS="-k stopped_node" for one row
	MESH_FULL=1 MESH_RESULTS=$${MESH_RESULTS:-nemesis.json} $(BIN)/python -m pytest -v tests/nemesis $(ARGS)

fuzz: $(VENV)/.installed-fuzz  ## look for bytes of the network that break something; SECONDS=600 for longer
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS) $(ARGS)

soak: $(VENV)/.installed-test  ## random faults and churn for MINUTES=30 (3 at least): nothing may pile up
	MESH_FULL=1 MESH_SOAK_MINUTES=$(MINUTES) $(BIN)/python -m pytest -v -s tests/nemesis/test_soak.py $(ARGS)

check: lint types test  ## all that CI asks for

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)

types: $(VENV)/.installed-dev
	$(BIN)/mypy

format: $(VENV)/.installed-dev  ## rewrite the sources in the one format
	$(BIN)/ruff check --fix-only $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

bench: $(VENV)/.installed-bench  ## measure it and the other ways; needs redis-server; ARGS=--quick for two minutes
	$(BIN)/python -m benchmarks $(ARGS)

bench-scale: $(VENV)/.installed-bench  ## as many live clients as this machine carries; ARGS="--clients 100000 --nodes 8"
	$(BIN)/python -m benchmarks.scale $(ARGS)

figures: $(VENV)/.installed-bench  ## tables and pictures of the documentation, from docs/performance.json
	$(BIN)/python -m benchmarks.document
	$(BIN)/python -m benchmarks.plots

clean:  ## remove everything that was made here
	rm -rf .venv .venv-* .nox build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage* htmlcov
	rm -rf benchmarks/results $(VENDOR)
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp for each extra. A changed setup.cfg installs again.
$(VENV)/.installed-%: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "gevent-mesh needs Python 3.10 or newer; name one: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# The official JavaScript client, for a demo without the internet. The chat's page falls back to a public CDN.
vendor:
	@if [ ! -e $(VENDOR)/socket.io.min.js ] && command -v npm >/dev/null; then \
		mkdir -p $(VENDOR)/unpacked && \
		npm pack socket.io-client@4 --silent --fetch-retries=0 --fetch-timeout=20000 \
			--pack-destination $(VENDOR)/unpacked >/dev/null 2>&1 && \
		tar -xzf $(VENDOR)/unpacked/*.tgz -C $(VENDOR)/unpacked package/dist/socket.io.min.js && \
		mv $(VENDOR)/unpacked/package/dist/socket.io.min.js $(VENDOR)/ || true; \
		rm -rf $(VENDOR)/unpacked; \
	fi
