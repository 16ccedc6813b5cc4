"""The methods that are the same in both clients, each written once.

As written here, a method returns the description of a system call. A decorator (`llmosd.client.descriptor`) turns it
into a method that makes the call: in `Client` it returns the answer, in `AsyncClient` a coroutine. This module does no
I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ipc.messages import Log, Message
from ipc.syscalls import (
    Attach,
    Backup,
    Call,
    ExitStatus,
    GetStats,
    History,
    Kill,
    KillTask,
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
from llmosd.client.cursor import Cursor, error_of_process
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
        """Submit a task. It ends with this connection unless `detach`, and after `deadline` seconds in any case.

        `positional` arguments come before those in `args`. With `lenient`, each text is parsed by the type of its
        parameter, as on a command line. `name` registers the process, and `limits` bound its usage. One owner and `key`
        is one task: a client that does not know whether a submission arrived repeats it with the same key. `durable`
        runs any program as a durable agent: see `llmosd.agent`.
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
        """A task that this or another client submitted: its events from now on, and its result. Raises `UnknownTask`.

        With `after`, the `seen` of an earlier reader, the events begin after that position; (0, 0) is the beginning.
        `Missed` stands for events that the daemon no longer retains. `Restarted` says that the daemon restarted and
        started the task again.
        """
        attempt, number = after or (0, None)
        return Follow(Attach(task_id, CREDIT, number, attempt), after)

    @asks
    def wait(self, pid: int, timeout: float | None = None) -> Ask[Any]:
        """Wait for process `pid` and return its result. Raises the error of the process if it failed."""
        return Ask(Wait(pid, timeout), _outcome)

    @asks
    def kill(self, pid: int) -> Ask[None]:
        """End process `pid` and its children; returns when it is gone."""
        return Ask(Kill(pid), _nothing)

    @asks
    def kill_task(self, task_id: str) -> Ask[str]:
        """End task `task_id`, even if it has no process yet. Returns how it ended: "killed", or its earlier end.

        Returns when the end is on disk. Raises `UnknownTask`.
        """
        return Ask(KillTask(task_id))

    @asks
    def suspend(self, pid: int) -> Ask[None]:
        """Stop process `pid` at its next system call, and take its generations off their slots."""
        return Ask(Suspend(pid), _nothing)

    @asks
    def resume(self, pid: int) -> Ask[None]:
        """Let a suspended process continue."""
        return Ask(Resume(pid), _nothing)

    @asks
    def nice(self, pid: int, priority: int, *, relative: bool = False) -> Ask[int]:
        """Set the priority of process `pid`, or add to it if `relative`. Returns the new one; 20 is most urgent."""
        return Ask(Nice(pid, priority, relative))

    # ---- messages

    @asks
    def send(self, /, to: int | str, body: Any, **options: Any) -> Ask[int]:
        """Send a message to `to`, a pid or a name; options as in `ipc.syscalls.Send`. Returns the id of the message."""
        return Ask(Send(to, body, **options))

    @asks
    def receive(self, timeout: float | None = None) -> Ask[Message]:
        """Receive the most urgent message to this client. Waits for a message if there is none."""
        return Ask(Receive(timeout))

    @asks
    def call(self, /, to: int | str, body: Any, timeout: float | None = None, **options: Any) -> Ask[Any]:
        """Send a message to `to`, a pid or a name, and return its reply; options as in `ipc.syscalls.Call`."""
        return Ask(Call(to, body, timeout, **options))

    @asks
    def reply(self, message: Message, body: Any) -> Ask[None]:
        """Reply to a message that was sent by a call."""
        return Ask(Reply(message.sender, message.id, body), _nothing)

    # ---- listings

    @asks
    def ps(
        self, *, clients: bool = False, tasks: bool = False, start: int = 0, limit: int = 10_000
    ) -> Ask[list[ProcessInfo]]:
        """The first `limit` living processes from pid `start` on; with `clients`, also the connections of clients.

        With `tasks`, tasks that have not restarted and have no process come first: see `ProcessInfo.task`.
        """
        return Ask(Ps(start, limit, clients, tasks))

    @asks
    def history(self, limit: int = 100, *, before: str | None = None) -> Ask[list[TaskInfo]]:
        """The last `limit` submitted tasks, newest first; only those submitted before task `before`, if given."""
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
        """Change the given settings of the policy of `model` (None: the default model). Returns the policy in force."""
        return Ask(SetPolicy(model, kind, quantum, aging, dict(weights or {}), starvation))

    @asks
    def models(self) -> Ask[list[ModelInfo]]:
        """The configured models."""
        return Ask(Models())

    @asks
    def programs(self) -> Ask[list[ProgramInfo]]:
        """The programs that the daemon can run."""
        return Ask(Programs())

    @asks
    def stats(self) -> Ask[Stats]:
        """Counters of the daemon and the load of the machine."""
        return Ask(GetStats())

    # ---- the daemon

    @asks
    def ping(self, payload: Any = None) -> Ask[Any]:
        """Make a round trip to the daemon; returns the payload."""
        return Ask(Ping(payload), _payload)

    @asks
    def backup(self, path: str | Path) -> Ask[int]:
        """Copy the journal to a new file that a daemon can use; returns its size in bytes. Raises `BackupFailed`."""
        return Ask(Backup(str(Path(path).absolute())))  # the daemon has another working folder

    @asks
    def shutdown(self, *, now: bool = False) -> Ask[None]:
        """Stop the daemon after a drain, or immediately if `now`."""
        return Ask(Shutdown(now), _nothing)


def _nothing(_: object) -> None:
    return None


def _payload(pong: Pong) -> Any:
    return pong.payload


def _outcome(status: ExitStatus) -> Any:
    """The value of a process that succeeded. Raises the error of a process that failed."""
    if status.error is not None:
        raise error_of_process(status.error)
    return status.value
