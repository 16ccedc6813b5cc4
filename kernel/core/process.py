"""Processes and their threads. A process is accounted, limited, owned and killed; its threads are scheduled.

A process is data plus its threads: `kernel.processes.lifecycle` starts it, `kernel.processes.exit` ends it. A thread is
a fiber of a process. The two classes are in one file because each refers to the other. Neither ever decides anything.
"""

from __future__ import annotations

import contextvars
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from ipc.errors import ErrorInfo, UnknownThread
from ipc.foreign import MAX_NAME, bounded
from ipc.messages import Log
from ipc.syscalls import ExitStatus, Limits, Usage, WaitFacts
from kernel.core.fiber import (
    BLOCKED,
    NEW,
    READY,
    RUNNING,
    SUSPENDED,
    ZOMBIE,
    Fiber,
    Scheduler,
    init_future,
    register_task,
)
from kernel.core.inherited_priority import InheritedPriority
from kernel.core.mailbox import Mailbox
from kernel.core.plain_wait import NO_WAIT, OUTSIDE, ThreadWait
from kernel.core.process_tree import ProcessTree
from kernel.core.suspension import Suspension
from kernel.lib.wording import counted, quoted
from kernel.policy.group import SchedulingGroup

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine, Iterable

    import msgspec

    from kernel.core.event_log import EventLog
    from kernel.core.stream import Stream
    from kernel.programs.program import Program

# The states of threads, the most active first. "generating", "loading" and "queued" are the stages of a model call.
ACTIVITY = (RUNNING, READY, "generating", "loading", "queued", BLOCKED, SUSPENDED, NEW, ZOMBIE)
MAIN = "0"  # path of the first thread of a process
LOG_LINES = 200  # retained per process

CLIENT = "client"  # program name of a connection


class HeldResource(Protocol):
    """A resource that a thread can hold, such as a lock."""

    def drop(self, thread: Thread) -> None:
        """Take the resource from `thread` completely, even if the thread has acquired it several times."""


class DurableHistory(Protocol):
    """The call history of a durable process: see `kernel.durable.history`. `context` makes the context of the agent."""

    context: Callable[[Process], Any]

    def current_call_id(self, thread: str) -> str:
        """The id of the call that the thread with this path makes now."""

    def is_replaying(self, thread: str) -> bool:
        """Whether the next call of the thread with this path has a record."""


class Thread(Fiber):
    """A coroutine of a process.

    `path` says which thread started it: "0" is the first thread of its process, "0-2" the second thread that "0"
    started, and "0-c1" the first that a callback of the loop started. So the threads of a program have the same paths
    in every run of it. `waits_for` is the wait that blocks
    the thread. `answer` is the answer to the call that the thread makes (see `kernel.core.answers`), `started_threads`
    counts the threads that it started, and `holds` are the resources that are taken from it when it ends.
    """

    __slots__ = ("answer", "holds", "path", "priority", "process", "started_threads", "suspended")
    waits_for: ThreadWait

    def __init__(
        self,
        process: Process,
        coro: Coroutine[Any, Any, Any],
        dispatcher: Scheduler,
        context: contextvars.Context | None = None,
        name: str | None = None,
    ) -> None:
        init_future(self, loop=dispatcher.loop)
        self.process = process
        self.state = NEW
        self.waits_for = NO_WAIT
        self.holds: dict[HeldResource, None] | None = None
        self.timers = 0
        self.answer: Any = None
        self.cpu = 0.0
        self.stepped_at = 0.0
        self.path = MAIN
        self.priority = process.priority
        self.suspended = False
        self.started_threads = 0
        self._coro = coro
        self._send = coro.send
        self._context = context if context is not None else contextvars.copy_context()
        self.dispatcher = dispatcher
        self._name = None if name is None else bounded(str(name), MAX_NAME)
        self._cancels = 0
        self._fut_waiter = None
        self._parked = False
        self._throw = None
        register_task(self)
        dispatcher.push(self)

    def get_name(self) -> str:
        return self._name or f"{self.process.program}-{self.process.pid}"

    def __repr__(self) -> str:
        return f"<Thread {self.get_name()} of pid {self.process.pid} {self.state} {self.waits_for}>"

    def hold(self, thing: HeldResource) -> None:
        """Record that `thing` must be taken from this thread when it ends."""
        if self.holds is None:
            self.holds = {}
        self.holds[thing] = None

    def forget(self, thing: HeldResource) -> None:
        """Undo `hold`."""
        if self.holds is not None:
            self.holds.pop(thing, None)

    def shown_state(self) -> str:
        """Its state as listings show it. A thread in a model call shows the stage of the call."""
        if self.suspended or self.process.suspended:
            return SUSPENDED
        return self.waits_for.stage or BLOCKED if self.state is BLOCKED else self.state

    def shown_wait(self) -> str:
        """The wait that blocks it, in a few words; empty if none does."""
        return str(self.waits_for) if self.state is BLOCKED else ""


class Process:
    """A running agent, or the connection of a client. `stream` takes the agent's events to the client of the task."""

    __slots__ = (
        "__weakref__",
        "accepts",
        "args",
        "attempt",
        "awaited",
        "calls",
        "children",
        "code",
        "cpu_of_ended",
        "critical_path",
        "durable",
        "dying",
        "ended_at",
        "first_receiver",
        "followers",
        "generated_tokens",
        "generation",
        "generations",
        "group",
        "held_back",
        "is_client",
        "limits",
        "log",
        "lowest_priority",
        "mailbox",
        "messages_received",
        "messages_sent",
        "outcome",
        "owner",
        "parent",
        "parent_pid",
        "pending_calls",
        "pid",
        "priority",
        "program",
        "prompt_tokens",
        "started",
        "status",
        "stream",
        "suspended",
        "suspensions",
        "threads",
        "threads_of_callbacks",
        "timer",
        "tree",
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
        stream: Stream | EventLog | None = None,
        is_client: bool = False,
        accepts: dict[str, type[msgspec.Struct]] | None = None,
        attempt: int = 1,
        durable: DurableHistory | None = None,
        code: Program | None = None,
    ) -> None:
        self.pid = pid
        self.parent = parent  # None once the parent or this process has ended
        self.parent_pid = 0 if parent is None else parent.pid
        self.tree: ProcessTree | None = None  # None for the connection of a client, whose tasks have a tree each
        self.generation = 0  # how many generations it is below the first process of its task
        self.program = program
        self.code = code  # the program itself; None for the connection of a client, and after the end
        self.args = args
        self.owner = owner
        self.priority = self.lowest_priority = priority  # `lowest_priority`: no thread of it has a lower one
        self.stream = stream
        self.is_client = is_client
        self.attempt = attempt  # of the task, from 1: see `kernel.tasks.submit`
        self.started = time.monotonic()
        self.prompt_tokens = self.generated_tokens = 0
        self.messages_sent = self.messages_received = self.calls = 0
        self.cpu_of_ended = 0.0  # seconds that the steps of ended threads took
        self.threads: dict[Thread, None] | tuple[Thread, ...] = ()  # in the order in which they started
        self.threads_of_callbacks = 0  # how many threads callbacks of the loop have started: "0-c1", "0-c2", ...
        self.children: dict[Process, None] | tuple[()] = ()  # made at first use, as few need it
        self.mailbox: Mailbox | None = None
        self.first_receiver: Thread | None = None  # waits for the first message; its sender makes the mailbox
        self.accepts = accepts  # declared message types; None accepts any
        self.pending_calls: PendingCalls | None = None
        self.generations = 0
        self.group: SchedulingGroup | None = None  # made at first use
        self.critical_path = 0.0  # service along the longest chain of model calls up to now
        self.log: deque[Log] | None = None
        self.watchers: list[Callable[[Process], None]] | tuple[()] = ()  # called when it has ended
        self.followers: list[Stream] | tuple[()] = ()  # streams to clients that follow the log
        self.suspended = False
        self.suspensions: dict[Thread | None, Suspension] | None = None  # by thread; None stands for the process
        self.held_back: list[Thread] | None = None  # ready, but suspended: see `Dispatcher.hold`; None: all may run
        self.dying: str = ""  # why it ends or has ended; empty before
        self.limits: Limits | None = None
        self.outcome: tuple[Any, ErrorInfo | None] = (None, None)  # value and error, while it is dying
        self.timer: asyncio.TimerHandle | None = None  # for its deadline; None when it is dying
        self.durable = durable  # the history of a durable process
        self.status: ExitStatus | None = None  # set when it has ended
        self.awaited = False  # whether its parent knows how it ended
        self.ended_at = 0.0  # by `time.monotonic`; 0 if it is alive or ended in a previous run of the daemon

    def add_thread(self, thread: Thread) -> None:
        """Add a thread. Nearly all processes have one thread, and a tuple takes less memory than a dictionary."""
        if not self.threads:
            self.threads = (thread,)
            return
        if isinstance(self.threads, tuple):
            self.threads = dict.fromkeys(self.threads)
        self.threads[thread] = None

    def drop_thread(self, thread: Thread) -> None:
        """Undo `add_thread`. Does nothing if the process does not have this thread."""
        if self.suspensions:
            self.suspensions.pop(thread, None)
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
        """Undo `watch`. Does nothing if `watcher` was called already."""
        if self.watchers and watcher in self.watchers:
            self.watchers.remove(watcher)

    def thread(self, path: str) -> Thread:
        """The living thread with this path. Raises `UnknownThread`."""
        for thread in self.threads:
            if thread.path == path:
                return thread
        known = ", ".join(thread.path for thread in self.threads) or "none"
        raise UnknownThread(f"process {self.pid} has no thread {quoted(path)!r}; it has {quoted(known)}", pid=self.pid)

    def open_mailbox(self) -> Mailbox:
        """The mailbox, made at first use. Takes over the first receiver."""
        if self.mailbox is None:
            self.mailbox = Mailbox()
            self.mailbox.receiver, self.first_receiver = self.first_receiver, None
        return self.mailbox

    def scheduling_group(self) -> SchedulingGroup:
        """The scheduling group of its model calls, made at first use. A task and all that it spawned share it."""
        if self.group is None:
            self.group = SchedulingGroup(self.pid, self.owner)
        return self.group

    def write_log(self, line: Log) -> None:
        """Retain `line`, and send it to the client of the task and to the clients that follow the log."""
        if self.log is None:
            self.log = deque(maxlen=LOG_LINES)
        self.log.append(line)
        if self.stream is not None:
            self.stream.push(line)
        for follower in self.followers:
            follower.push(line)

    def state(self) -> tuple[str, str]:
        """The state of the process and the wait that blocks it. Both are taken from its most active thread."""
        if self.ended:
            return ZOMBIE, ""
        if self.suspended:
            return SUSPENDED, ""
        if self.is_client:
            return BLOCKED, "requests"
        thread = self.most_active_thread()
        if thread is None:
            return NEW, ""
        state = thread.shown_state()
        return state, "" if state == SUSPENDED else thread.shown_wait()

    def most_active_thread(self) -> Thread | None:
        """The thread whose state stands for the process; None if it has no thread.

        Of equally active threads it is the oldest one that waits for something which the kernel knows. The others may
        only wait for that thread, as with `asyncio.TaskGroup`.
        """

        def rank(thread: Thread) -> tuple[int, bool]:
            return ACTIVITY.index(thread.shown_state()), thread.waits_for is OUTSIDE

        return min(self.threads, key=rank, default=None)

    @property
    def ended(self) -> bool:
        """Whether it has ended, and has left the living processes of the table."""
        return self.status is not None

    @property
    def cpu_seconds(self) -> float:
        """Seconds that the steps of its threads took, including threads that have ended."""
        return self.cpu_of_ended + sum(thread.cpu for thread in self.threads)

    def usage(self) -> Usage:
        """Its usage so far."""
        return Usage(
            self.prompt_tokens,
            self.generated_tokens,
            self.messages_sent,
            self.messages_received,
            self.calls,
            self.cpu_seconds,
        )


class PendingCalls(dict[int, Thread | None]):
    """The calls that `process` has not answered: by message id the thread that waits, or None if it has given up.

    A process has one such object. It is also the wait of every thread that waits for a reply of the process.
    `inherited`: the priorities that more urgent callers lend to it, if any. `forgotten`: see `kernel.core.answers`.
    """

    __slots__ = ("forgotten", "inherited", "process")
    stage = ""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process = process
        self.inherited: InheritedPriority | None = None
        self.forgotten = 0

    def __str__(self) -> str:
        return f"reply of {self.process.pid}"

    def ended_by(self) -> Iterable[Thread] | None:
        return None if self.process.is_client or not self.process.threads else self.process.threads

    def explain(self, thread: Thread) -> WaitFacts:
        process = self.process
        number = next((number for number, caller in self.items() if caller is thread), 0)
        unread = any(message.id == number for message in (process.mailbox.peek() if process.mailbox else ()))
        others = len(self) - 1
        also = f"; {counted(others, 'other call')} also {'waits' if others == 1 else 'wait'} for its replies"
        read = "has not read the call yet" if unread else "has read the call"
        return WaitFacts(
            kind="reply",
            doing=f"waiting for a reply of process {process.pid} ({quoted(process.program)})",
            state=f"Process {process.pid} {read}{also if others > 0 else ''}",
            ends=f"process {process.pid} replies or ends",
            awaits=process.pid,
        )
