"""The supervision subsystem: checks each `Supervise` call, and runs a supervisor for it.

The gate calls its handler. It never starts or ends a child itself: the `Supervisor` does.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any, cast

import structlog

from ipc.errors import InvalidCall
from ipc.foreign import shown
from ipc.messages import Log
from ipc.syscalls import Child, ExitStatus, Supervise
from kernel.core.process import Process, Thread
from kernel.gate import Gate
from kernel.lib.validation import check_seconds
from kernel.processes.lifecycle import Lifecycle
from kernel.supervision.restarts import RestartIntensity
from kernel.supervision.supervisor import Supervisor

log = structlog.get_logger("kernel.supervision")


class Supervision:
    """Handles `Supervise`. `chance` returns random numbers from 0 to 1 for the pauses before restarts."""

    def __init__(
        self,
        gate: Gate,
        lifecycle: Lifecycle,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._lifecycle = lifecycle
        self._chance = chance
        gate.register({Supervise: self.supervise})

    def supervise(self, process: Process, call: Supervise) -> Coroutine[Any, Any, list[ExitStatus]]:
        _check(call)
        restarts = RestartIntensity(call.max_restarts, call.within, call.backoff, call.max_backoff, self._chance)
        return self._supervise(process, call, restarts)

    async def _supervise(self, process: Process, call: Supervise, restarts: RestartIntensity) -> list[ExitStatus]:
        thread = cast("Thread", asyncio.current_task())

        def report(event: str, fields: dict[str, Any]) -> None:
            log.warning(event, supervisor=process.pid, **fields)
            process.write_log(Log(process.pid, time.time(), "warning", event, fields))

        supervisor = Supervisor(
            thread,
            call,
            restarts,
            self._lifecycle.spawn,
            self._lifecycle.table.find,
            self._lifecycle.process_exit.end,
            report,
        )
        return await supervisor.run()


def _check(call: Supervise) -> None:
    """Raises `InvalidCall`. The codec has checked a client's call; an agent can pass anything."""
    if not call.children:
        raise InvalidCall("there are no children to supervise")
    for child in call.children:
        if not isinstance(child, Child) or child.restart not in ("permanent", "transient", "temporary"):
            raise InvalidCall(f"{shown(child)} is not a Child with restart permanent, transient or temporary")
    if call.strategy not in ("one_for_one", "one_for_all", "rest_for_one"):
        raise InvalidCall(f"strategy is {shown(call.strategy)}; use one_for_one, one_for_all or rest_for_one")
    for name in ("within", "backoff", "max_backoff"):
        check_seconds(getattr(call, name), name)
    if not call.within or not isinstance(call.max_restarts, int | float) or not call.max_restarts >= 0:
        raise InvalidCall(
            f"max_restarts is {shown(call.max_restarts)} and within is {shown(call.within)}; "
            "max_restarts must be a number of at least 0, and within must be above 0"
        )
