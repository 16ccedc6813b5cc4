"""Helpers of the tests of explanations: ask why a process waits, and the participants of a wait as pairs.

It never changes a process.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ipc.syscalls import Explanation, Participant, Why
from tests.support.system import System


async def why(system: System, process: Any) -> Explanation:
    """The explanation of a process, given as the process or its pid."""
    explanation: Explanation = await system.call(Why(process if isinstance(process, int) else process.pid))
    return explanation


def pids(participants: Iterable[Participant]) -> list[int]:
    return [one.pid for one in participants]
