# make run     serve the example app at http://127.0.0.1:5001 (ARGS="--port 5002 --workers 2")
# make test    run all tests, browsers included (ARGS="-k session")
# make test-fast   run the unit tests, which need no system packages, npm, browser or root
# make test-tools  run the tests of the benchmarks, of the faults, of the attacks, of the proxies and of several workers in full
# make long    run the fuzzers, the random walk, the cut event streams and the tests of properties for long
# make walks   walk randomly with streams: clients, servers and workers (ARGS="-k cluster")
# make test-versions   run the tests of private parts on the lowest and newest packages (ARGS="3.12-lowest")
# make check   formatting, lint, types and prose
# make docs    build the docs site into build/site
# make format  format the code
# make faults  do harm to NATS and the bridge, judge what clients got (ARGS="kill sigstop --rounds 1")
# make abuse   attack the bridge with and without its limits, judge what honest clients see (ARGS="overlap --rounds 3")
# make proxies measure the browser client behind proxies (ARGS="nginx haproxy --seconds 20")
# make bench   measure against nats-server's own WebSocket port and others (ARGS="steady burst --rounds 3")
# make bench-panini  the same with Panini's gateway beside them
# Each sets up what it needs, in .venv and by apt-get where it may.

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NODE := tests/support/node
FAULTS_NODE := tools/faults/node
ARGS ?=
# The tests start hundreds of Python processes, which would each compile the package.
unexport PYTHONDONTWRITEBYTECODE
# The tests wait more than they compute. ARGS="-n 0" runs them one after another. Files are run in their order: those
# of tests/unit, the last folder, are short and fill what the long ones leave at the end.
PARALLEL := -n 6 --dist loadfile --no-loadscope-reorder

# What the tests need of the system, each with a command or library by which its presence is seen: two
# browsers, what Playwright's driver needs to steer one, two proxies, a network that can be cut, Node, and curl.
TEST_PACKAGES := chromium:chromium libatomic.so.1:libatomic1 firefox-esr:firefox-esr nginx:nginx-light \
	haproxy:haproxy ip:iproute2 node:nodejs npm:npm curl:curl

.PHONY: run test test-fast test-tools test-versions long walks check docs format faults abuse proxies bench bench-panini clean
.DEFAULT_GOAL := run

run: $(VENV)/.run
	exec $(BIN)/python -m example_app $(ARGS)

test: $(VENV)/.dev
	@.ci/packages $(TEST_PACKAGES)
	@$(MAKE) --no-print-directory $(NODE)/node_modules/.made $(FAULTS_NODE)/node_modules/.made
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

# The lane is the folder: a test belongs into tests/unit if it needs Python packages only, and waits for nothing.
test-fast: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 tests/unit $(ARGS)

test-tools: $(VENV)/.dev
	@.ci/packages $(TEST_PACKAGES)
	@$(MAKE) --no-print-directory $(FAULTS_NODE)/node_modules/.made
	TOOLS_IN_FULL=1 $(BIN)/python -m pytest tests/tools tests/system/test_deploy.py tests/system/test_fleet.py tests/system/test_proxy_table.py tests/system/test_rolling.py tests/system/test_workers.py $(ARGS)

test-versions: $(VENV)/.dev
	$(BIN)/python -m tools.versions $(ARGS)

# The marker is hypothesis's own: it is on each test of a property.
long: export HYPOTHESIS_PROFILE := long
long: $(VENV)/.dev
	RANDOM_STEPS=100000 FUZZED_CONNECTIONS=5000 SHARED_WALKS=50000 EVENT_STREAM_CUTS=1000 $(BIN)/python -m pytest -n 2 \
		--timeout 7200 tests/integration/test_random_walk.py tests/integration/test_frame_fuzz.py \
		tests/browser/test_client_share.py tests/browser/test_event_source_cuts.py $(ARGS)
	$(BIN)/python -m pytest -n 2 --timeout 7200 -m hypothesis $(ARGS)

# Random walks of clients, servers and workers with streams (ARGS="-k cluster"; STREAM_MESSAGES=300000, STREAM_SEED=7).
walks: $(VENV)/.dev
	STREAM_MESSAGES=$${STREAM_MESSAGES:-1000000} $(BIN)/python -m pytest -n 2 --timeout 7200 \
		tests/integration/test_streams_join.py tests/integration/test_streams_join_cluster.py $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m tools.prose

# NO_MKDOCS_2_WARNING: the theme announces its successor on each run.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

faults: $(VENV)/.dev
	@.ci/packages node:nodejs npm:npm
	@$(MAKE) --no-print-directory $(FAULTS_NODE)/node_modules/.made
	$(BIN)/python -m tools.faults $(ARGS)

abuse: $(VENV)/.dev
	$(BIN)/python -m tools.abuse $(ARGS)

# The tool itself installs the proxies that it is to measure.
proxies: $(VENV)/.dev
	@.ci/packages chromium:chromium libatomic.so.1:libatomic1
	$(BIN)/python -m tools.proxies $(ARGS)

bench: $(VENV)/.bench
	$(BIN)/python -m tools.benchmarks $(ARGS)

bench-panini: $(VENV)/.bench .bench/panini/.made
	$(BIN)/python -m tools.benchmarks --with panini $(ARGS)

clean:
	rm -rf $(VENV) .bench .versions $(NODE)/node_modules $(FAULTS_NODE)/node_modules tools/proxies/node/node_modules

$(VENV)/.run: $(VENV)/.made pyproject.toml setup.cfg
	$(BIN)/pip install --quiet --editable '.[server]'
	@touch $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml setup.cfg
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.run

$(VENV)/.bench: $(VENV)/.made pyproject.toml setup.cfg
	$(BIN)/pip install --quiet --editable '.[bench]'
	@touch $@ $(VENV)/.run

# Panini needs another version of nats-py, and names neither aiohttp nor packaging, which it imports.
.bench/panini/.made: $(VENV)/.made
	$(BIN)/python -m venv --clear .bench/panini
	.bench/panini/bin/pip install --quiet 'panini==0.8.4' 'aiohttp>=3.11' packaging
	@touch $@

# What the tests of the browser client run it with, and check its types; and what the faults run it with.
%/node_modules/.made: %/package.json
	npm install --prefix $* --no-package-lock --no-audit --no-fund --silent
	@touch $@

# Debian's python3 has no ensurepip without python3-venv.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || .ci/packages ensurepip:python3-venv
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@
