"""The base of all parts of the context. It stores the gate and the calling process, and never makes a call itself."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from ipc.errors import InvalidCall

if TYPE_CHECKING:
    from kernel.core.process import Process
    from kernel.gate import SystemCalls

AgentFunction = Callable[..., Coroutine[Any, Any, Any]]  # marked with `@agent`


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

    def _program_name(self, program: str | AgentFunction) -> str:
        """The name by which this process spawns `program`. Raises `InvalidCall` for anything but a name or an agent."""
        if isinstance(program, str):
            return program
        if self._process.code is None:
            raise InvalidCall(f"process {self._process.pid} has no program, so it can spawn agents by name only")
        return self._process.code.name_for(program)
