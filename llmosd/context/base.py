"""The base of all parts of the context: the gate, and the process that calls. It makes no call itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kernel.core.process import Process
    from kernel.gate import SystemCalls


class Caller:
    """Stores the gate and the process. The parts of `Context` add methods and no state."""

    __slots__ = ("_gate", "_process")

    def __init__(self, gate: SystemCalls, process: Process) -> None:
        self._gate = gate
        self._process = process

    @property
    def pid(self) -> int:
        """The pid of this process."""
        return self._process.pid

    @property
    def attempt(self) -> int:
        """The number of this attempt of the task, from 1. It grows by one with each restart of the daemon."""
        return self._process.attempt
