"""Models whose KV memory holds two sequences, and the swap files of the others.

Used by the tests of paging. It never decides which sequence is swapped out.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from ipc.syscalls import Resume, Slots, Suspend
from kernel.models.spec import ModelSpec
from tests.support.simulated import text_of
from tests.support.system import System

TOKEN = 1000  # bytes
PROMPT = 3  # tokens of every prompt here
# Memory for two sequences of 20 tokens and their prompts.
TIGHT = {
    "step_seconds": 1.0,
    "sequence_seconds": 0.0,
    "prompt_seconds": 0.0,
    "token_bytes": TOKEN,
    "kv_memory": 50 * TOKEN,
    "swap_seconds": 0.5,
}
FOUR_SLOTS = {"sim": ModelSpec(driver="simulated", slots=4, lease=4, options=TIGHT)}
TWO_SLOTS = {"sim": ModelSpec(driver="simulated", slots=2, lease=4, options=TIGHT)}
ONE_SLOT = {"sim": ModelSpec(driver="simulated", slots=1, lease=4, options=TIGHT | {"kv_memory": 30 * TOKEN})}
ROOMY = {"sim": ModelSpec(driver="simulated", slots=2, lease=4, options=TIGHT | {"kv_memory": 10**9})}


def files(system: System, pattern: str = "*.kv") -> list[str]:
    folder: Path = system.swap
    return sorted(path.name for path in folder.rglob(pattern))


async def row(system: System) -> Any:
    (row,) = await system.call(Slots())
    return row


LONG = TIGHT | {"kv_memory": 200 * TOKEN, "swap_seconds": 0.0}


async def parked_on_disk(system: System) -> list[Any]:
    """Three tellers, the first of which is suspended and swapped out."""
    processes = [system.spawn("teller", seed=seed) for seed in (1, 2)]
    await asyncio.sleep(4.5)
    await system.call(Suspend(processes[0].pid))
    processes.append(system.spawn("teller", seed=3))
    await asyncio.sleep(3)
    assert files(system) == ["1.kv"]
    return processes


async def finish(system: System, processes: list[Any]) -> None:
    await system.call(Resume(processes[0].pid))
    for seed, process in enumerate(processes, 1):
        assert await system.result(process) == text_of(seed)
    await system.turns(20)
    assert files(system) == []
