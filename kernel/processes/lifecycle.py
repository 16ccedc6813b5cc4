"""The start of processes: as children of other processes, or for the connections of clients.

The gate calls `spawn`; connections, tasks and durable processes call the rest. A child never outlives its parent unless
it is detached. `threads` starts further threads of a process, `control` suspends and ranks it, `exit` ends it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from contextvars import Context, copy_context
from functools import partial
from typing import Any, Protocol
from weakref import WeakValueDictionary

from ipc.codec import isolate, reveal
from ipc.errors import Busy, DeadlineExceeded, Killed, ShuttingDown
from ipc.foreign import forget_origin
from ipc.syscalls import Spawn
from kernel.core.event_log import EventLog
from kernel.core.fiber import NEW
from kernel.core.process import CLIENT, DurableHistory, Process, Thread
from kernel.core.process_table import ProcessTable
from kernel.core.process_tree import ProcessTree
from kernel.core.stream import Stream
from kernel.dispatch.dispatcher import Dispatcher
from kernel.gate import Gate, SystemCalls
from kernel.lib.validation import check_label, check_priority, check_seconds, check_text
from kernel.processes.exit import ProcessExit, RestOfDeadline, deadline_passed
from kernel.processes.outcome import final_event_to, outcome
from kernel.programs.loader import ProgramLoader
from kernel.programs.origin import ORIGIN, without_origin
from kernel.programs.program import Program

MAX_PROCESSES = 200_000
MAX_OWNER = 200  # characters
MAX_PROGRAM = 4096  # characters of a name or path; up to 200 need no check
SHORT_NAME = 200


class Admission(Protocol):
    """A subsystem that can refuse a new process, and is notified after the process was made."""

    @property
    def sees_all(self) -> bool:
        """Whether this admission is asked about every process, even one without a name, a link and limits."""

    def admit(self, parent: Process, call: Spawn) -> None:
        """Raises an error if the process may not start."""

    def admitted(self, process: Process, parent: Process, call: Spawn) -> None:
        """Take note of `process`, which has been made. Its first thread has not run yet."""


class Lifecycle:
    """Starts processes.

    The `admissions` are asked in their order before a process is made, and notified in the same order afterwards. They
    are skipped if the process has no name, no link and no limits, and its parent has no limits, unless one of them
    `sees_all`. `make_context` makes the context of an agent from the gate and the process.
    """

    def __init__(
        self,
        table: ProcessTable,
        programs: ProgramLoader,
        dispatcher: Dispatcher,
        process_exit: ProcessExit,
        gate: Gate,
        make_context: Callable[[SystemCalls, Process], Any],
        admissions: Sequence[Admission],
    ) -> None:
        self.table = table
        self.programs = programs
        self.dispatcher = dispatcher
        self.process_exit = process_exit
        self.make_context = make_context
        self.draining = False
        self._loop = dispatcher.loop
        self._instruments = dispatcher.instruments
        self._gate = gate
        self._admissions = admissions
        # Loads for clients, by name: those that have not begun, and the locks of those that have.
        self._loading: dict[str, asyncio.Task[Program]] = {}
        self._loads: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.admissions_changed()
        self._no_variables = Context()  # of that callback, which is the kernel's and not the agent's
        self._main_done_callback = self._main_done  # one bound method for all threads, each of which stores it
        gate.register({Spawn: self.spawn})

    def admissions_changed(self) -> None:
        """The settings of an admission have changed."""
        self._always_asked = any(admission.sees_all for admission in self._admissions)

    # ---- system calls

    def spawn(self, parent: Process, call: Spawn, stream: Stream | None = None) -> int | Coroutine[Any, Any, int]:
        self.check(parent, call)
        program = self.find(parent, call.program)
        if program is not None and self.table.pids.ready:
            return self.start(parent, program, call, stream)
        return self._prepare_and_start(parent, call, stream)

    async def _prepare_and_start(self, parent: Process, call: Spawn, stream: Stream | None) -> int:
        async with before_deadline(call):
            program = self.find(parent, call.program) or await self.load(parent, call.program)
            await self.table.pids.wait()
        return self.start(parent, program, call, stream)

    def find(self, parent: Process, name: str) -> Program | None:
        """The program that `name` means to `parent`, unless it must be loaded, or a client needs its latest version.

        An agent that names a program of another file gets the version that was loaded last, because a look at the disk
        for each child would slow down agents with many children.
        """
        program = self.programs.find(name, parent.code)
        return None if program is not None and parent.is_client and program.module is not None else program

    async def load(self, parent: Process, name: str) -> Program:
        """The program that `name` means to `parent`, in the version that is on the disk now.

        Raises `UnknownProgram` and `AgentFailed`. The requests of clients for one program share a look at the disk that
        has not begun.
        """
        if not parent.is_client:
            return await self.programs.in_worker(partial(self.programs.look, name, parent.code))
        loading = self._loading.get(name)
        if loading is None:
            loading = self._loading[name] = asyncio.Task(
                self._load_for_clients(name), loop=self._loop, context=without_origin()
            )
            loading.add_done_callback(_retrieve)
        return await asyncio.shield(loading)

    async def _load_for_clients(self, name: str) -> Program:
        """Load a program after the load of that name that has begun, so that a disk that hangs holds one thread."""
        async with self._loads.setdefault(name, asyncio.Lock()):
            del self._loading[name]  # a client that asks from now on may have changed the file after this look at it
            return await self.programs.in_worker(partial(self.programs.look, name, None))

    def check(self, parent: Process, call: Spawn) -> None:
        """Check that new processes are accepted, and the fields of `call`.

        Raises `ShuttingDown`, `Busy`, `InvalidCall`. During a drain, agents may still spawn: a drain must not make an
        accepted task fail.
        """
        if self.draining and parent.is_client:
            raise ShuttingDown("the daemon is shutting down and takes no new tasks", retry_after=5.0)
        if len(self.table.alive) >= MAX_PROCESSES:
            raise Busy(f"{MAX_PROCESSES} processes are alive, which is the limit; try later", retry_after=1.0)
        if type(call.program) is not str or len(call.program) > SHORT_NAME:
            check_text(call.program, "the name of a program", MAX_PROGRAM)
        if call.priority is not None:
            check_priority(call.priority)
        if call.deadline is not None:
            call.deadline = check_seconds(call.deadline, "deadline")
        if call.owner is not None:
            check_label(call.owner, "an owner", MAX_OWNER)

    # ---- for connections and the daemon

    def open_client(self, owner: str, name: str = CLIENT) -> Process:
        """A new process that stands for the connection of a client of `owner`; `name` is shown as its program.

        Raises `InvalidCall`, and `ShuttingDown` if the kernel closes.
        """
        check_label(name, "the name of a client", MAX_OWNER)
        process = Process(self.table.pids.take(), None, name or CLIENT, {}, owner=owner, priority=0, is_client=True)
        self.table.alive[process.pid] = process
        return process

    def admit(self, parent: Process, program: Program, call: Spawn) -> dict[str, Any]:
        """The arguments of the process that `start` would make. Raises an error if that process may not start."""
        return self._admit(parent, program, call, self._admissions)

    def _admit(self, parent: Process, program: Program, call: Spawn, concerned: Sequence[Admission]) -> dict[str, Any]:
        args = call.args
        if args and not parent.is_client:
            args = reveal(isolate(args))
        if args or call.positional or not program.needs_no_arguments:
            args = program.bind(args, call.positional, lenient=call.lenient)
        if parent.dying and not (parent.is_client and call.detach):
            raise Killed(f"process {parent.pid} ended while it spawned {call.program}", pid=parent.pid)
        if self.process_exit.ending_descendants:
            self.process_exit.check_ancestors(parent)
        tree = parent.tree
        if tree is not None and (tree.outer or tree.alive >= tree.most or parent.generation >= tree.deepest):
            tree.check(parent.generation + (not call.detach))
        for admission in concerned:
            admission.admit(parent, call)
        return args

    def start(
        self,
        parent: Process,
        program: Program,
        call: Spawn,
        stream: Stream | EventLog | None,
        attempt: int | None = None,
        pid: int = 0,
        durable: DurableHistory | None = None,
    ) -> int:
        """Start a process and return its pid. Raises an error if the process may not start.

        `attempt` is the number of the attempt of its task, by default that of the parent. `pid` is the pid that the
        process had in a previous run of the daemon, or 0 for a new pid. A process with a `durable` history is durable.
        """
        concerned = self._admissions
        if not (self._always_asked or call.name is not None or call.link or call.limits or parent.limits):
            concerned = ()  # true of most processes: no admission has to be asked
        args = self._admit(parent, program, call, concerned)
        table, detach = self.table, call.detach
        if not pid:
            pid = table.pids.take()
        process = Process(
            pid,
            None if detach else parent,
            program.name,
            args,
            call.owner or parent.owner,
            parent.priority if call.priority is None else call.priority,
            stream if stream is not None or detach else parent.stream,
            False,
            program.accepts,
            parent.attempt if attempt is None else attempt,
            durable,
            program,
        )
        context = self.make_context(self._gate, process) if durable is None else durable.context(process)
        coro = program.function(context, **args) if args else program.function(context)
        tree = parent.tree
        if tree is None:
            tree = ProcessTree(pid)
        else:
            process.generation = parent.generation + (not detach)
        process.tree = tree
        if tree.outer is None:
            tree.alive += 1
        else:
            tree.add()
        table.alive[pid] = process
        if not detach:
            if not parent.children:
                parent.children = {}
            parent.children[process] = None
        if stream is not None and isinstance(stream, Stream):  # into an event log, `kernel.tasks` puts the final event
            process.watch(final_event_to(stream))
        if call.deadline is not None:
            why = deadline_passed(call.deadline)
            process.timer = self._loop.call_later(call.deadline, self.process_exit.end, process, "deadline", why)
        if process.timer is not None or not parent.is_client:
            _schedule_with(process, parent, self._loop.time(), call.deadline)
        if self._instruments.states:
            self._instruments.notify_state(process, NEW)
        variables = copy_context()
        variables.run(ORIGIN.set, process)
        main = Thread(process, coro, self.dispatcher, variables)
        process.threads = (main,)
        main.add_done_callback(self._main_done_callback, context=self._no_variables)
        for admission in concerned:
            admission.admitted(process, parent, call)
        return pid

    # ---- inside

    def _main_done(self, thread: asyncio.Future[Any]) -> None:
        process = self.process_exit.thread_gone(thread)
        if not process.dying:
            self.process_exit.finish(process, *outcome(thread, process))
        if not thread.cancelled() and (error := thread.exception()) is not None:
            # The error has been reported as text. Its frames refer to the thread, and the thread refers to the error.
            # Break this cycle, or thousands of failed threads would stay in memory until the garbage collector runs.
            forget_origin(error)


def before_deadline(call: Spawn) -> AbstractAsyncContextManager[None]:
    """Prepare the process of `call` in the block, and take the time of that off its deadline.

    Raises `DeadlineExceeded` if the deadline passes meanwhile.
    """
    seconds = None if call.deadline is None else check_seconds(call.deadline, "deadline")
    # Most spawns have no deadline, and a generator would make each of them slower.
    return nullcontext() if seconds is None else _before_deadline(call, seconds)


@asynccontextmanager
async def _before_deadline(call: Spawn, seconds: float) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        async with asyncio.timeout(seconds) as limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise DeadlineExceeded(f"the deadline of {seconds:g} s passed before the process could begin") from None
    call.deadline = RestOfDeadline(max(seconds - (loop.time() - began), 0.0), seconds)


def _retrieve(loading: asyncio.Task[Program]) -> None:
    """Take note of an error, so that asyncio does not warn of it if all clients have gone."""
    if not loading.cancelled():
        loading.exception()


def _schedule_with(process: Process, parent: Process, now: float, deadline: float | None) -> None:
    """Put a process that an agent spawned into the group of its parent, unless it works for another owner.

    A process that is not in its parent's group gets the `deadline`, in seconds from `now`, in a group of its own.
    """
    if not parent.is_client and process.owner == parent.owner:
        process.group, process.critical_path = parent.scheduling_group(), parent.critical_path
    elif deadline is not None:  # not `process.timer.when()`, which uvloop lacks at delay 0
        process.scheduling_group().deadline = now + deadline
