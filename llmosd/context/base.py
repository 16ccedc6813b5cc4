"""The base of all parts of the context. It stores the gate and the calling process, and never makes a call itself."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from ipc.errors import InvalidCall
from ipc.foreign import class_name, shown

if TYPE_CHECKING:
    from kernel.core.process import Process
    from kernel.gate import SystemCalls

T = TypeVar("T")

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


def list_of(values: Iterable[T], what: str) -> list[T]:
    """The items of `values`, which `what` describes in the error. Raises `InvalidCall` for one text and for no list."""
    try:
        items = None if isinstance(values, str | bytes) else iter(values)
    except TypeError:
        items = None
    if items is None:
        raise InvalidCall(f"{what}: {shown(values)}, of type {class_name(values)}, is no list")
    return list(items)


def dict_of(args: Mapping[str, Any] | None, what: str) -> dict[str, Any]:
    """A copy of the mapping `args`, which `what` describes in the error; empty for None. Raises `InvalidCall`."""
    try:
        return {} if args is None else dict(args)
    except (TypeError, ValueError):
        raise InvalidCall(
            f"{what}: {shown(args)}, of type {class_name(args)}, is no mapping of names to values"
        ) from None
