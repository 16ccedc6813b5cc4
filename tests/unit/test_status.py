"""Answers to questions about the kernel."""

from __future__ import annotations

from ipc.syscalls import Ps
from tests.support.agents import idle
from tests.support.system import System


async def test_pages_of_processes_follow_their_pids_though_one_restarted_with_an_old_pid(system: System) -> None:
    pids = [system.spawn(idle).pid for _ in range(4)]
    restarted = system.table.alive.pop(pids[1])
    system.table.alive[restarted.pid] = restarted  # like a durable process that restarts: it enters the table last
    first = await system.call(Ps(limit=3))
    rest = await system.call(Ps(start=first[-1].pid + 1, limit=3))
    assert [row.pid for row in [*first, *rest]] == pids
