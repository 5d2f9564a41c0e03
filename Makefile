# Everything runs in .venv, made on first use and kept.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO ?= demo

.PHONY: setup demo test test-reliability test-learners suite-setup soak conformance lint format bench peers views clean

setup: $(READY)

# Torch first and pinned: an unpinned torch brings gigabytes of CUDA packages along.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/penstock demo --dir $(DEMO)

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal

# The fault programme in full: crash states, kill -9, failing system calls, model, mutants, networks
# that fail, fuzzed requests, floods.
test-reliability: $(READY)
	PENSTOCK_LONG=1 $(BIN)/python -m pytest -n 2 --dist worksteal --timeout 1200 \
		tests/reliability tests/store/test_maintenance_*.py tests/service/test_log_*.py \
		tests/service/test_server_kills.py tests/service/test_network.py \
		tests/service/test_flight.py tests/service/test_hostile.py tests/service/test_fuzz.py \
		tests/service/test_flood.py

# Every learner on a small task until it is solved, three seeds each; minutes apiece.
test-learners: $(READY)
	PENSTOCK_LONG=1 $(BIN)/python -m pytest -n 2 --dist worksteal --timeout 1200 \
		tests/learners/test_tasks.py tests/learners/test_traps.py

# A server under half its peak for SOAK_MINUTES (30): nothing may grow, no episode may be missing.
soak: $(READY)
	$(BIN)/python -m tests.reliability.soak

# What the formats' own libraries make of our files, in environments of their own (gigabytes).
conformance: $(READY)
	$(BIN)/python tests/conformance/run.py

# Bad inputs in full: 20,000 mutants of each parser, and datasets larger than memory may be.
test-hostile: $(READY)
	PENSTOCK_LONG=1 $(BIN)/python -m pytest -n 2 --dist worksteal \
		tests/connectors/test_hostile.py tests/connectors/test_fuzz.py \
		tests/connectors/test_memory.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/penstock bench stream

# Environments of other projects, each of its own, for `penstock bench ingest` and `stream`.
PENSTOCK_PEERS ?= .peers
PEERS := torchrl d3rlpy mosaicml robomimic tfds grain reverb lerobot

peers: $(PEERS:%=$(PENSTOCK_PEERS)/%/.ready)

# Torch first where it is asked for, as above.
$(PENSTOCK_PEERS)/%/.ready: tests/peers/%.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	grep '^torch==' $< | xargs -r $(@D)/bin/pip install --quiet --disable-pip-version-check
	$(@D)/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@

# Simulators of the learners' suite (python -m benchmarks), whose pins of MuJoCo do not go together.
suite-setup: $(patsubst %,$(PENSTOCK_PEERS)/suite-%/.ready,ogbench robotics metaworld)

$(PENSTOCK_PEERS)/suite-%/.ready: benchmarks/%.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@

# Other libraries train on versions seen as their own datasets (docs/views.md).
views: torchrl-views d3rlpy-views lerobot-views

%-views: $(PENSTOCK_PEERS)/%/.ready
	$(<D)/bin/pip install --quiet --disable-pip-version-check --no-deps -r tests/peers/views.txt
	PYTHONPATH=. $(<D)/bin/python tests/peers/check_views_$*.py

# Without what LeRobot asks for: a torch with CUDA, and drivers of robots.
LEROBOT := tests/conformance/lerobot.txt tests/peers/lerobot_policies.txt

$(PENSTOCK_PEERS)/lerobot/.ready: $(LEROBOT)
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check $$(grep '^torch==' $<)
	$(@D)/bin/pip install --quiet --disable-pip-version-check --no-deps $(LEROBOT:%=-r %)
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
