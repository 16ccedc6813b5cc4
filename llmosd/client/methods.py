"""What a client can ask of the daemon, each written once for both clients. No I/O.

A method here says which system call it is and how its answer is read. `Client` and `AsyncClient` inherit it: it returns
the answer there, or a coroutine of it (`llmosd.client.descriptor`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ipc.errors import from_wire
from ipc.messages import Log, Message
from ipc.syscalls import (
    Attach,
    Backup,
    Call,
    ExitStatus,
    GetStats,
    History,
    Kill,
    Limits,
    Logs,
    ModelInfo,
    Models,
    Nice,
    Ping,
    PolicyInfo,
    Pong,
    ProcessInfo,
    ProgramInfo,
    Programs,
    Ps,
    Receive,
    Reply,
    Resume,
    Send,
    SetPolicy,
    Shutdown,
    SlotInfo,
    Slots,
    Stats,
    Submit,
    Suspend,
    TaskInfo,
    Wait,
)
from llmosd.client.cursor import Cursor
from llmosd.client.descriptor import Ask, Follow, asks, follows
from llmosd.client.session import CREDIT


class ClientMethods:
    """The methods that both clients have."""

    # ---- tasks

    @follows
    def submit(
        self,
        program: str,
        args: Mapping[str, Any] | None = None,
        *,
        positional: Iterable[Any] = (),
        lenient: bool = False,
        priority: int | None = None,
        deadline: float | None = None,
        owner: str | None = None,
        detach: bool = False,
        name: str | None = None,
        limits: Limits | None = None,
        key: str | None = None,
        durable: bool = False,
    ) -> Follow:
        """Start a task. It ends with this connection unless `detach`, and after `deadline` seconds in any case.

        `positional` arguments come before those by name; `lenient` reads numbers and such from text. Others can reach
        it by `name`; it uses no more than `limits`. The same `key` of the same owner is the same task: whoever does not
        know whether a submission arrived repeats it with the key that it had.
        With `durable` a program is run as if it were marked so: see `llmosd.agent`.
        """
        return Follow(
            Submit(
                program,
                dict(args or {}),
                tuple(positional),
                lenient,
                priority,
                deadline,
                owner,
                detach,
                credit=CREDIT,
                name=name,
                limits=limits,
                key=key,
                durable=durable,
            )
        )

    @follows
    def attach(self, task_id: str, *, after: Cursor | tuple[int, int] | None = None) -> Follow:
        """A task that was submitted before, by whomever: its events from now on, and its result. `UnknownTask`.

        With `after`, the `seen` of the task as somebody had it: the events that came since. What is not kept any more
        is told by `Missed`, and a task that began anew with the daemon by `Restarted`; (0, 0) is the beginning.
        """
        attempt, number = after or (0, None)
        return Follow(Attach(task_id, CREDIT, number, attempt), after)

    @asks
    def wait(self, pid: int, timeout: float | None = None) -> Ask[Any]:
        """The result of process `pid`. Raises its error if it failed."""
        return Ask(Wait(pid, timeout), _outcome)

    @asks
    def kill(self, pid: int) -> Ask[None]:
        """End process `pid` and its children; returns when it is gone."""
        return Ask(Kill(pid), _nothing)

    @asks
    def suspend(self, pid: int) -> Ask[None]:
        """Stop process `pid` at its next system call, and take its generations off their slots."""
        return Ask(Suspend(pid), _nothing)

    @asks
    def resume(self, pid: int) -> Ask[None]:
        """Let a suspended process go on."""
        return Ask(Resume(pid), _nothing)

    @asks
    def nice(self, pid: int, priority: int, *, relative: bool = False) -> Ask[int]:
        """Give process `pid` a priority from -20 to 20, the most urgent, or add to the one it has; the new one."""
        return Ask(Nice(pid, priority, relative))

    # ---- messages

    @asks
    def send(self, /, to: int | str, body: Any, **options: Any) -> Ask[int]:
        """Put a message into the mailbox of `to`, a pid or a name; options as in `ipc.syscalls.Send`. Its id."""
        return Ask(Send(to, body, **options))

    @asks
    def receive(self, timeout: float | None = None) -> Ask[Message]:
        """The most urgent message to this client."""
        return Ask(Receive(timeout))

    @asks
    def call(self, /, to: int | str, body: Any, timeout: float | None = None, **options: Any) -> Ask[Any]:
        """Send to `to`, a pid or a name, and wait for its reply; options as in `ipc.syscalls.Call`."""
        return Ask(Call(to, body, timeout, **options))

    @asks
    def reply(self, message: Message, body: Any) -> Ask[None]:
        """Answer a message that came by a call."""
        return Ask(Reply(message.sender, message.id, body), _nothing)

    # ---- looking

    @asks
    def ps(self, *, clients: bool = False, start: int = 0, limit: int = 10_000) -> Ask[list[ProcessInfo]]:
        """The first `limit` living processes from pid `start` on; those of connections too if `clients`."""
        return Ask(Ps(start, limit, clients))

    @asks
    def history(self, limit: int = 100, *, before: str | None = None) -> Ask[list[TaskInfo]]:
        """The last `limit` tasks that were submitted, newest first; of those before the task `before`, if given."""
        return Ask(History(limit, before))

    @asks
    def logs(self, pid: int) -> Ask[list[Log]]:
        """The last lines of the log of process `pid`."""
        return Ask(Logs(pid))

    @asks
    def slots(self) -> Ask[list[SlotInfo]]:
        """The slots of every model in use."""
        return Ask(Slots())

    @asks
    def policy(
        self,
        model: str | None = None,
        kind: str | None = None,
        *,
        quantum: int | None = None,
        aging: float | None = None,
        weights: Mapping[str, float] | None = None,
        starvation: float | None = None,
    ) -> Ask[PolicyInfo]:
        """The policy of the slots of `model` (None: the default one), after whatever is given was changed."""
        return Ask(SetPolicy(model, kind, quantum, aging, dict(weights or {}), starvation))

    @asks
    def models(self) -> Ask[list[ModelInfo]]:
        """The configured models."""
        return Ask(Models())

    @asks
    def programs(self) -> Ask[list[ProgramInfo]]:
        """The programs that can be run."""
        return Ask(Programs())

    @asks
    def stats(self) -> Ask[Stats]:
        """Counters of the daemon, and the machine."""
        return Ask(GetStats())

    # ---- the daemon

    @asks
    def ping(self, payload: Any = None) -> Ask[Any]:
        """The payload, back from the daemon."""
        return Ask(Ping(payload), _payload)

    @asks
    def backup(self, path: str | Path) -> Ask[int]:
        """Copy the daemon's journal to a new file that a daemon can start on; its size in bytes. `BackupFailed`."""
        return Ask(Backup(str(Path(path).absolute())))  # the daemon stands in another folder

    @asks
    def shutdown(self, *, now: bool = False) -> Ask[None]:
        """Stop the daemon: after a drain, or at once."""
        return Ask(Shutdown(now), _nothing)


def _nothing(_: object) -> None:
    return None


def _payload(pong: Pong) -> Any:
    return pong.payload


def _outcome(status: ExitStatus) -> Any:
    """The value of a process that ended well. Raises its error otherwise."""
    if status.error is not None:
        raise from_wire(status.error)
    return status.value
