"""The registry of names: a living process may hold several, and others send to it by them.

Called by the gate, and by the message subsystem for each message to a name. A name is free again when its holder ends.
"""

from __future__ import annotations

from collections.abc import Mapping

from ipc.errors import InvalidCall, NameTaken, NotPermitted, UnknownName
from ipc.syscalls import NameInfo, Names, Register, Spawn, Unregister
from kernel.core.process import Process
from kernel.core.process_table import ProcessTable
from kernel.gate import Gate

MAX_LENGTH = 200  # characters of a name


class NameRegistry:
    """Processes by name. `reserved`: names of processes that are to begin again, with their pids.

    One of the admissions of the lifecycle, as a process may begin with a name.
    """

    of_all = False

    def __init__(self, table: ProcessTable, gate: Gate, reserved: Mapping[str, int]) -> None:
        self._table = table
        self._holders: dict[str, Process] = {}
        self._names: dict[Process, set[str]] = {}
        self._reserved = reserved
        gate.register({Register: self.register, Unregister: self.unregister, Names: self.names})

    def find(self, name: str) -> Process:
        """The holder of `name`. Raises `UnknownName`."""
        holder = self._holders.get(name)
        if holder is None:
            raise UnknownName(f"no process is registered as {name!r}; `llmos names` lists the names", name=name)
        return holder

    def register(self, process: Process, call: Register) -> None:
        holder = self._table.get(call.pid) if call.pid else process
        self._check(call.name, holder)
        self._holders[call.name] = holder
        self._names.setdefault(holder, set()).add(call.name)

    def _check(self, name: str, holder: Process | None) -> None:
        if not name or len(name) > MAX_LENGTH or name.lstrip("-").isdigit() or not name.isprintable():
            raise InvalidCall(f"{name[:50]!r} cannot be a name: it takes 1 to {MAX_LENGTH} characters, not all digits")
        reserved = self._reserved.get(name)
        if reserved is not None and (holder is None or holder.pid != reserved):
            raise NameTaken(f"{name!r} is the name of process {reserved}, which begins again", name=name, pid=reserved)
        other = self._holders.get(name)
        if other is not None and other is not holder:
            raise NameTaken(
                f"{name!r} is the name of process {other.pid} ({other.program}); it is free when that ends",
                name=name,
                pid=other.pid,
            )

    def admit(self, parent: Process, call: Spawn) -> None:
        """Whether a new process can have its name. Raises what `register` raises."""
        if call.name is not None:
            self._check(call.name, None)

    def begun(self, process: Process, parent: Process, call: Spawn) -> None:
        """Give a new process its name."""
        if call.name is not None:
            self.register(process, Register(call.name))

    def unregister(self, process: Process, call: Unregister) -> None:
        holder = self.find(call.name)
        if holder is not process and not process.is_client:
            raise NotPermitted(f"{call.name!r} is the name of process {holder.pid}, which alone may give it up")
        del self._holders[call.name]
        self._names[holder].discard(call.name)

    def names(self, process: Process, call: Names) -> list[NameInfo]:
        return [NameInfo(name, holder.pid, holder.program) for name, holder in sorted(self._holders.items())]

    def process_ended(self, process: Process) -> None:
        for name in self._names.pop(process, ()):
            del self._holders[name]
