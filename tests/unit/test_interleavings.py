"""Thousands of schedules, each decided by a seed: agents do anything at any time, and the invariants must hold.

A failure names its seed and the command that replays it step by step. `make soak` explores many more schedules.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, MutableMapping
from random import Random
from typing import Any

import pytest
import structlog

from tests.support.exploration.play import play
from tests.support.exploration.schedule import SeededLoop, seeded
from tests.support.exploration.world import World

REPLAY = "LLMOS_SEED={seed} python -m pytest tests/unit/test_interleavings.py"

PARTS = 10  # tests, so that each ends in time on a busy machine, too

logged: list[str] = []  # the kernel's own errors, from its log
undone: list[SeededLoop] = []  # loops of failed seeds, held so that their unfinished tasks log nothing


@pytest.fixture(autouse=True)
def log() -> Iterator[None]:
    def note(logger: object, method: str, event: MutableMapping[str, Any]) -> str:
        if event.get("exc_info"):
            logged.append(f"the kernel logged: {event}")
        raise structlog.DropEvent

    gc.collect()  # what earlier tests left behind must not end, and log, in a schedule of this one
    structlog.configure(processors=[note], wrapper_class=structlog.make_filtering_bound_logger("error"))
    yield
    structlog.reset_defaults()


def explore(seed: int, traced: list[str] | None = None) -> None:
    """Play the schedule of `seed`, and append its steps to `traced`. Raises `AssertionError`."""
    chance = Random(seed)
    loop = SeededLoop()
    logged.clear()

    async def begin() -> list[str]:
        return await play(World(loop, chance, traced))

    try:
        with seeded(chance):
            problems = loop.run_until_complete(begin())
    except Exception as error:
        problems = [f"{type(error).__name__}: {error}"]
    except BaseException:  # such as the end of the time of the test
        print(f"seed {seed} was interrupted")
        raise
    finally:
        loop.close()
    problems = [*problems, *logged]
    if problems:
        undone.append(loop)
    listed = "\n  ".join(problems[:10])
    assert not problems, f"seed {seed}:\n  {listed}\nTo replay it: {REPLAY.format(seed=seed)}"


@pytest.mark.soak
@pytest.mark.parametrize("part", range(PARTS))
def test_no_schedule_loses_a_message_a_slot_a_lock_or_a_waiter(part: int, trial: Callable[..., int]) -> None:
    wanted = os.environ.get("LLMOS_SEED")
    for seed in range(part, trial(short=2000, long=100_000), PARTS) if wanted is None else ():
        explore(seed)
    if wanted is not None and part == 0:
        traced: list[str] = []
        try:
            explore(int(wanted), traced)
        finally:
            print(*traced, sep="\n")


@pytest.mark.parametrize("seed", range(5))
def test_the_same_seed_takes_the_same_steps(seed: int) -> None:
    first: list[str] = []
    second: list[str] = []
    explore(seed, first)
    explore(seed, second)
    assert first
    assert first == second
