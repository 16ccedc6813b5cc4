"""The registry of names: a message can be sent to the name of a living process in place of its pid.

The gate calls its handlers, and the message subsystem looks up each recipient that is given by name. A name never
outlives its holder: when the process ends, the name is free again.
"""

from __future__ import annotations

from collections.abc import Mapping

from ipc.errors import InvalidCall, LimitExceeded, NameTaken, NotPermitted, UnknownName
from ipc.foreign import shown
from ipc.syscalls import NameInfo, Names, Register, Spawn, Unregister
from kernel.core.process import Process
from kernel.core.process_table import ProcessTable
from kernel.gate import Gate
from kernel.lib.pages import names_after, shortened
from kernel.lib.validation import is_text
from kernel.lib.wording import quoted

MAX_LENGTH = 200  # characters of a name
MOST_NAMES = 1000  # of one process


class NameRegistry:
    """Processes by name. `reserved`: the names of durable processes that have not restarted yet, with their pids.

    One of the admissions of the lifecycle, because `Spawn` can give a new process a name.
    """

    sees_all = False

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
            name = quoted(name)
            raise UnknownName(f"no process is registered as {name!r}; `llmos names` lists the names", name=name)
        return holder

    def register(self, process: Process, call: Register) -> None:
        holder = self._table.get(call.pid) if call.pid else process
        self._check(call.name, holder)
        names = self._names.get(holder, ())
        if len(names) >= MOST_NAMES and call.name not in names:
            raise LimitExceeded(
                f"process {holder.pid} has {MOST_NAMES} names, which is the limit; give one up",
                limit="process names",
                maximum=MOST_NAMES,
                wanted=len(names) + 1,
            )
        self._holders[call.name] = holder
        self._names.setdefault(holder, set()).add(call.name)

    def _check(self, name: str, holder: Process | None) -> None:
        if (
            not is_text(name)
            or not name
            or len(name) > MAX_LENGTH
            or name.lstrip("-").isdigit()
            or not name.isprintable()
        ):
            raise InvalidCall(
                f"{shown(name, 50)} cannot be a name: use 1 to {MAX_LENGTH} printable characters, and no number"
            )
        reserved = self._reserved.get(name)
        if reserved is not None and (holder is None or holder.pid != reserved):
            raise NameTaken(f"{name!r} is the name of process {reserved}, which will restart", name=name, pid=reserved)
        other = self._holders.get(name)
        if other is not None and other is not holder:
            raise NameTaken(
                f"{name!r} is the name of process {other.pid} ({other.program}); it is free when that process ends",
                name=name,
                pid=other.pid,
            )

    def admit(self, parent: Process, call: Spawn) -> None:
        """Check that a new process can have the name in `call`. Raises `InvalidCall`, `NameTaken`."""
        if call.name is not None:
            self._check(call.name, None)

    def admitted(self, process: Process, parent: Process, call: Spawn) -> None:
        """Register a new process under the name in `call`."""
        if call.name is not None:
            self.register(process, Register(call.name))

    def unregister(self, process: Process, call: Unregister) -> None:
        holder = self.find(call.name)
        if holder is not process and not process.is_client:
            raise NotPermitted(
                f"{call.name!r} is the name of process {holder.pid}; only that process or a client may give it up"
            )
        del self._holders[call.name]
        self._names[holder].discard(call.name)

    def names(self, process: Process, call: Names) -> list[NameInfo]:
        names = names_after(self._holders, call.after, Names)
        return [NameInfo(name, self._holders[name].pid, shortened(self._holders[name].program)) for name in names]

    def process_ended(self, process: Process) -> None:
        for name in self._names.pop(process, ()):
            del self._holders[name]
