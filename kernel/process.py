"""Processes: what is accounted, owned, limited and killed; and the table that holds the living and the recent dead.

Owned by the kernel. A process is data plus its threads: how it starts is in `kernel.lifecycle`, how it ends in
`kernel.ending`.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any

from ipc.errors import ErrorInfo, UnknownProcess, UnknownThread
from ipc.messages import Log
from ipc.syscalls import ExitStatus, Limits, ProcessInfo, Usage
from kernel.mailbox import Mailbox
from kernel.policy.program import Program
from kernel.thread import BLOCKED, NEW, READY, RUNNING, SUSPENDED, ZOMBIE, Thread

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    import msgspec

    from kernel.durable.history import History
    from kernel.relay import Relay
    from kernel.slots.sequence import Sequence
    from kernel.stream import Stream
    from kernel.waiting import Owed

LOG_LINES = 200  # kept per process
REMEMBERED = 512  # ended processes whose status and log can still be asked for

CLIENT = "client"  # program name of a connection


class Process:
    """An agent at work, or the connection of a client. `stream` takes its events to whoever submitted the task."""

    __slots__ = (
        "accepts",
        "args",
        "attempt",
        "calls",
        "children",
        "cpu_of_ended",
        "durable",
        "dying",
        "followers",
        "generated_tokens",
        "generations",
        "held",
        "is_client",
        "limits",
        "lineage_program",
        "listener",
        "log",
        "mailbox",
        "messages_received",
        "messages_sent",
        "outcome",
        "owed",
        "owner",
        "parent",
        "parent_pid",
        "path",
        "pid",
        "priority",
        "program",
        "prompt_tokens",
        "sequences",
        "started",
        "status",
        "stream",
        "suspended",
        "threads",
        "timer",
        "watchers",
    )

    def __init__(
        self,
        pid: int,
        parent: Process | None,
        program: str,
        args: dict[str, Any],
        owner: str,
        priority: int,
        stream: Stream | Relay | None = None,
        is_client: bool = False,
        accepts: dict[str, type[msgspec.Struct]] | None = None,
        attempt: int = 1,
        durable: History | None = None,
    ) -> None:
        self.pid = pid
        self.parent = parent  # while both live
        self.parent_pid = 0 if parent is None else parent.pid
        self.program = program
        self.args = args
        self.owner = owner
        self.priority = priority
        self.stream = stream
        self.is_client = is_client
        self.attempt = attempt  # which one of its task it is: see `kernel.tasks`
        self.started = time.monotonic()
        self.prompt_tokens = self.generated_tokens = 0
        self.messages_sent = self.messages_received = self.calls = 0
        self.cpu_of_ended = 0.0  # seconds of threads that have ended
        self.threads: dict[Thread, None] | tuple[Thread, ...] = ()  # in the order in which they started
        self.children: dict[Process, None] | tuple[()] = ()  # made at first use, as much here is: most need none
        self.mailbox: Mailbox | None = None
        self.listener: Thread | None = None  # waits for the message with which the mailbox will be made
        self.accepts = accepts  # declared message types; None: any
        self.owed: Owed | None = None
        self.sequences: dict[Sequence, None] | None = None  # in the order of their calls
        self.generations = 0
        self.lineage_program: Program | None = None  # made at first use
        self.path = 0.0  # service of the longest chain of model calls that led to where it is
        self.log: deque[Log] | None = None
        self.watchers: list[Callable[[Process], None]] | tuple[()] = ()  # called once it has ended
        self.followers: list[Stream] | tuple[()] = ()  # clients that read the log as it grows
        self.suspended = False
        self.held: list[Thread] | None = None  # ready threads that may not run; None: all may (see `Dispatcher.hold`)
        self.dying: str = ""  # why it ends or ended
        self.limits: Limits | None = None
        self.outcome: tuple[Any, ErrorInfo | None] = (None, None)  # value and error, once it is dying
        self.timer: asyncio.TimerHandle | None = None  # of its deadline, or of its grace once it is dying
        self.durable = durable  # the history of a durable process
        self.status: ExitStatus | None = None  # once it has ended

    def add_thread(self, thread: Thread) -> None:
        """`thread` is one of this process. Nearly all processes have one, for which a dictionary would be much."""
        if not self.threads:
            self.threads = (thread,)
            return
        if isinstance(self.threads, tuple):
            self.threads = dict.fromkeys(self.threads)
        self.threads[thread] = None

    def drop_thread(self, thread: Thread) -> None:
        """Undo `add_thread`; nothing if that was done."""
        if isinstance(self.threads, dict):
            self.threads.pop(thread, None)
        elif thread in self.threads:
            self.threads = ()

    def watch(self, watcher: Callable[[Process], None]) -> None:
        """Call `watcher` with this process when it has ended."""
        if not self.watchers:
            self.watchers = []
        self.watchers.append(watcher)

    def unwatch(self, watcher: Callable[[Process], None]) -> None:
        """Undo `watch`; nothing if it was called."""
        if self.watchers and watcher in self.watchers:
            self.watchers.remove(watcher)

    def thread(self, path: str) -> Thread:
        """The living thread of this path. Raises `UnknownThread`."""
        for thread in self.threads:
            if thread.path == path:
                return thread
        known = ", ".join(thread.path for thread in self.threads) or "none"
        raise UnknownThread(f"process {self.pid} has no thread {path!r}; it has {known}", pid=self.pid)

    def box(self) -> Mailbox:
        """The mailbox, made at first use."""
        if self.mailbox is None:
            self.mailbox = Mailbox()
            self.mailbox.receiver, self.listener = self.listener, None
        return self.mailbox

    def lineage(self) -> Program:
        """What its model calls are scheduled as part of: its task, with all that the task spawned."""
        if self.lineage_program is None:
            self.lineage_program = Program(self.pid, self.owner)
        return self.lineage_program

    def write_log(self, line: Log) -> None:
        """Keep `line`, and show it to whoever submitted the task or follows the log."""
        if self.log is None:
            self.log = deque(maxlen=LOG_LINES)
        self.log.append(line)
        if self.stream is not None:
            self.stream.push(line)
        for follower in self.followers:
            follower.push(line)

    def state(self) -> tuple[str, str]:
        """The state of the process as a whole, and what it waits for: that of its liveliest thread."""
        if self.ended:
            return ZOMBIE, ""
        if self.suspended:
            return SUSPENDED, ""
        if self.is_client:
            return BLOCKED, "requests"
        by_state = {thread.state: thread for thread in self.threads}
        for state in (RUNNING, READY, BLOCKED):
            if state in by_state:
                return state, str(by_state[state].waits_for) if state == BLOCKED else ""
        return NEW, ""

    @property
    def ended(self) -> bool:
        """Whether it is over, and buried."""
        return self.status is not None

    @property
    def cpu_seconds(self) -> float:
        """Processor time of all its threads."""
        return self.cpu_of_ended + sum(thread.cpu for thread in self.threads)

    def usage(self) -> Usage:
        """What it has used so far."""
        return Usage(
            self.prompt_tokens,
            self.generated_tokens,
            self.messages_sent,
            self.messages_received,
            self.calls,
            self.cpu_seconds,
        )

    def info(self, now: float) -> ProcessInfo:
        state, waits_for = self.state()
        return ProcessInfo(
            pid=self.pid,
            parent=self.parent_pid,
            program=self.program,
            owner=self.owner,
            priority=self.priority,
            state=state,
            waits_for=waits_for,
            threads=len(self.threads),
            mailbox=self.mailbox.count if self.mailbox is not None else 0,
            age=now - self.started,
            usage=self.usage(),
        )


class ProcessTable:
    """All processes by pid, and the last ones that ended. Pids count up and are never used twice."""

    def __init__(self) -> None:
        self.alive: dict[int, Process] = {}
        self.ended: OrderedDict[int, Process] = OrderedDict()
        self.last_pid = 0

    def get(self, pid: int) -> Process:
        """The living process `pid`. Raises `UnknownProcess`, which tells an ended one from one that never was."""
        process = self.alive.get(pid)
        if process is None:
            raise self.unknown(pid)
        return process

    def find(self, pid: int) -> Process:
        """Process `pid`, alive or still remembered."""
        process = self.alive.get(pid) or self.ended.get(pid)
        if process is None:
            raise self.unknown(pid)
        return process

    def bury(self, process: Process) -> None:
        """Move a process that has ended to the remembered ones; clients are forgotten at once."""
        del self.alive[process.pid]
        if process.is_client:
            return
        self.ended[process.pid] = process
        if len(self.ended) > REMEMBERED:
            self.ended.popitem(last=False)

    def unknown(self, pid: int) -> UnknownProcess:
        what = "has ended" if 0 < pid <= self.last_pid else "never existed"
        return UnknownProcess(f"process {pid} {what}; `llmos ps` lists the living", pid=pid)
