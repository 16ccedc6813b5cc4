"""Loads the programs of children of a previous run, and waits for those that cannot be loaded now.

Used by the replay of `Spawn`. A broken program must not end a child: its parent waits until the child can restart. It
never starts a process.
"""

from __future__ import annotations

import asyncio
from typing import cast

import msgspec
import structlog

from ipc.syscalls import Spawn, WaitFacts
from kernel.core.fiber import PARK
from kernel.core.process import Process, Thread
from kernel.lib.wording import quoted
from kernel.processes.lifecycle import Lifecycle
from kernel.programs.program import Program
from kernel.programs.reasons import one_line
from kernel.programs.watch import ProgramWatch

log = structlog.get_logger("kernel.durable")


class ChildPrograms:
    """Loads programs, with the `watch` that says when another attempt is worth it."""

    def __init__(self, lifecycle: Lifecycle, watch: ProgramWatch) -> None:
        self._lifecycle = lifecycle
        self._watch = watch

    async def load(self, parent: Process, call: Spawn, *, name_is_reserved: bool) -> Program:
        """Return the program of `call` once it can be loaded and takes the arguments of `call`.

        A cancellation of the agent is deferred, because the recorded call had none.
        """
        thread = cast("Thread", asyncio.current_task())
        checked = msgspec.structs.replace(call, name=None) if name_is_reserved else call
        deferred: asyncio.CancelledError | None = None
        wait: ProgramWait | None = None
        try:
            while True:
                try:
                    program = None if wait is not None else self._lifecycle.find(parent, call.program)
                    if program is None:  # or the one that was loaded does not fit
                        program = await self._lifecycle.load(parent, call.program)
                    self._lifecycle.admit(parent, program, checked)
                    break
                except asyncio.CancelledError as error:
                    if parent.dying:
                        raise
                    deferred = error
                except Exception as error:
                    if parent.dying:
                        raise
                    if wait is None:
                        why = one_line(error)
                        log.warning("a child waits for its program", pid=parent.pid, program=call.program, why=why)
                        self._watch.add(thread.wake, [call.program])
                    wait = ProgramWait(call.program, error)
                    thread.waits_for = wait
                    try:
                        await PARK
                    except asyncio.CancelledError as cancellation:
                        if parent.dying:
                            raise
                        deferred = cancellation
        finally:
            self._watch.remove(thread.wake)
        if deferred is not None:
            thread.defer(deferred)
        return program


class ProgramWait:
    """The wait of a parent until the program of its child can be loaded."""

    __slots__ = ("_error", "_program")
    stage = ""

    def __init__(self, program: str, error: Exception) -> None:
        self._program = program
        self._error = error

    def __str__(self) -> str:
        return f"program {self._program}"

    def ended_by(self) -> None:
        """None: a change of the file ends the wait."""

    def explain(self, thread: Thread) -> WaitFacts:
        return WaitFacts(
            kind="program",
            doing=f"waiting for program {quoted(self._program)} of a child that ran in a previous run of the daemon",
            state=one_line(self._error),
            ends="the program can be loaded: the daemon tries again when a file changes, at SIGHUP, and every minute",
        )
