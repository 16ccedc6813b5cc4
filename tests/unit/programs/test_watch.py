"""The watch of programs that cannot be loaded, and the reasons that it is needed for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ipc.errors import AgentFailed, InvalidCall, LlmosError, UnknownProgram
from kernel.programs.loader import ProgramLoader
from kernel.programs.reasons import MAX_REASON, one_line
from kernel.programs.watch import ProgramWatch


async def test_an_error_while_it_looks_for_changed_files_does_not_end_the_attempts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks, attempts = [], asyncio.Queue[int]()

    async def fails(loader: ProgramLoader, work: Any) -> None:
        looks.append(work)
        raise ValueError("an odd disk")

    monkeypatch.setattr(ProgramLoader, "in_worker", fails)
    watch = ProgramWatch(ProgramLoader([]))
    watch.add(lambda: attempts.put_nowait(len(looks)), ["some"])
    first, second = await attempts.get(), await attempts.get()
    assert second > first
    watch.stop()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UnknownProgram("no program 'a'; known: b", program="a"), "no program 'a'; known: b"),
        (UnknownProgram("none", program="a", broken=["a.py is broken"]), "no program 'a'; a.py is broken"),
        (UnknownProgram("none", program="a", broken=[5]), "no program 'a'; 5"),
        (UnknownProgram("none", program="a", broken=5), "none"),
        (InvalidCall(""), "InvalidCall"),
        (AgentFailed('a.py fails:\n  File "/b/a.py", line 3\nKeyError: 1'), "a.py fails: KeyError: 1 (a.py:3)"),
    ],
)
def test_a_reason_is_one_line_of_any_error(error: LlmosError, reason: str) -> None:
    assert one_line(error) == reason
    assert len(one_line(AgentFailed("x" * 10_000))) < 2 * MAX_REASON
