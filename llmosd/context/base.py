"""What every part of the context stands on: the gate, and the process that calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kernel.core.process import Process
    from kernel.gate import SystemCalls


class Caller:
    """Holds the gate and the process. The parts of `Context` add methods and no state."""

    __slots__ = ("_gate", "_process")

    def __init__(self, gate: SystemCalls, process: Process) -> None:
        self._gate = gate
        self._process = process

    @property
    def pid(self) -> int:
        """The number of this process."""
        return self._process.pid

    @property
    def attempt(self) -> int:
        """Which attempt of its task this is, from 1: one more than the times the daemon ended meanwhile."""
        return self._process.attempt
