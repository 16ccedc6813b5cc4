"""The base of all parts of the context. It stores the gate and the calling process, and never makes a call itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kernel.core.process import Process
    from kernel.gate import SystemCalls


class Caller:
    """Stores the gate and the calling process. The parts of `Context` add methods to it, but no state."""

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
        """The number of this attempt of the task, from 1. Each restart of the daemon begins a new attempt."""
        return self._process.attempt
