"""Work grows in proportion: the lines of the kernel that run for more things of a kind, counted and not timed.

The cases are those of the bench of growth. From n to 2n and from 2n to 3n things, as many lines more must run. A count
of lines is exact, but does not see loops that run in C.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from kernel.models.spec import ModelSpec
from llmosd.context import Context
from tests.support.boot import boot
from tests.support.growth_messages import CASES
from tests.support.paths import ROOT
from tests.support.simulated import FAST

KERNEL = str(ROOT / "kernel") + os.sep
N = 24
SIZES = {
    "senders that wait for room": 80,
    "log lines": 256,  # a process gives up the loop at each 128th call
}
MOST = 1.15  # lines for the third n things, per line for the second n
WITH_A_JOURNAL = {"tasks in the journal"}


class Lines:
    """Counts the lines of the kernel that run inside it."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> None:
        sys.settrace(self._call)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, event: str, _: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(KERNEL) else None

    def _line(self, frame: FrameType, event: str, _: Any) -> Any:
        self.count += event == "line"
        return self._line


async def load_model(ctx: Context) -> None:
    await ctx.generate("a", max_tokens=1)


async def lines(folder: Path, name: str, n: int) -> int:
    """The lines of the kernel that run for `n` things."""
    models = {"sim": ModelSpec(driver="simulated", slots=8, options=FAST)}
    system = boot(folder, models=models)
    if "model" in name:
        await system.run(load_model)  # in a thread of Linux, which takes any number of turns of the loop
    counted = Lines()
    await CASES[name](system, n, counted)
    await system.end()
    await system.kernel.close()
    return counted.count


@pytest.mark.parametrize("name", sorted(CASES.keys() - WITH_A_JOURNAL))
async def test_as_many_more_things_cost_as_many_more_lines(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernel.policy.queue_entry.SLACK", 4)  # so that a heap drops its stale items at all sizes
    monkeypatch.setattr("kernel.dispatch.dispatcher.TURN_SECONDS", 1e9)  # so that turns end by their number of steps
    if sys.gettrace() is not None:
        pytest.skip("another tool traces the lines")
    await lines(tmp_path, name, 2)  # what runs only once in a process of Linux, such as the making of checks
    one, two, three = [await lines(tmp_path, name, times * SIZES.get(name, N)) for times in (1, 2, 3)]
    assert three - two <= MOST * (two - one), (one, two, three)
