"""A kernel under test, with one client in whose name the test makes system calls.

Used by nearly every test of the kernel; `boot` builds it. It gives tests access to the inside of the kernel, so
that they use no private names, and never changes how the kernel behaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping
from pathlib import Path
from types import CoroutineType
from typing import Any

from ipc.abi import AgentMark
from ipc.codec import reveal
from ipc.errors import LlmosError, from_wire
from ipc.messages import Event
from ipc.syscalls import (
    Attach,
    ExitStatus,
    GetStats,
    History,
    Spawn,
    Stats,
    Submit,
    Submitted,
    Syscall,
    TaskInfo,
    Threads,
    Wait,
)
from kernel.core.process import Process, Thread
from kernel.core.stream import Stream
from kernel.journal.journal import Journal
from kernel.kernel import Kernel
from kernel.models.runtime import ModelRuntime
from kernel.models.sequence import Sequence
from kernel.programs.installed import InstalledPrograms
from kernel.programs.program import Function, Program
from kernel.programs.tool import Tool
from kernel.tasks.submit import Tasks
from tests.support.drivers import InLoopDriver, InLoopLauncher
from tests.support.machine import FakeMachine


class Recorder:
    """The client's end of a stream: the events that were delivered, and whether the stream ended."""

    def __init__(self, credit: int) -> None:
        self.events: list[Event] = []
        self.ended = False
        self.stream = Stream(self.events.append, credit, self._end)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def _end(self) -> None:
        self.ended = True


def lone_process(pid: int, owner: str = "me", priority: int = 0) -> Process:
    """A process that no kernel knows of."""
    return Process(pid, None, "test", {}, owner=owner, priority=priority)


class System:
    """A kernel, its driver, and one client in whose name the test makes system calls."""

    def __init__(self, kernel: Kernel, launcher: InLoopLauncher, machine: FakeMachine) -> None:
        self.kernel = kernel
        self.launcher = launcher
        self.machine = machine
        self.loop = kernel.loop
        self.table = kernel.table
        self.client = kernel.lifecycle.open_client("test")
        self.programs = kernel.programs
        self.programs.installed = InstalledPrograms(tuple)  # the entry points of this machine are no part of a test

    # ---- programs

    def program(self, function: Function, name: str | None = None) -> str:
        """Install `function` as a program; return its name."""
        return self.install(Program(function, AgentMark(name or function.__name__, ""), "test"))

    def install(self, program: Program) -> str:
        """Install a program as an entry point would; return its name."""
        self.programs.installed.programs.append(program)
        self.programs.by_name[program.name] = program
        return program.name

    def install_tool(self, tool: Tool) -> None:
        """Install a tool as an entry point would."""
        self.programs.installed.tools.append(tool)
        self.programs.tools = self.programs.tools | {tool.name: tool}

    def find_programs_in(self, *folders: Path) -> None:
        """Let the kernel look for programs in these folders only."""
        self.programs._folders = list(folders)

    def recorder(self, credit: int = 1_000_000) -> Recorder:
        return Recorder(credit)

    def spawn(
        self,
        program: Function | str,
        /,
        *positional: Any,
        stream: Stream | None = None,
        parent: Process | None = None,
        priority: int | None = None,
        deadline: float | None = None,
        detach: bool = False,
        **args: Any,
    ) -> Process:
        """Start a program that needs no loading; return its process before its first step."""
        name = program if isinstance(program, str) else self.program(program)
        call = Spawn(name, args, positional, priority=priority, deadline=deadline, detach=detach)
        parent, lifecycle = parent or self.client, self.kernel.lifecycle
        lifecycle.check(parent, call)
        found = self.programs.find(name, parent.code)
        assert found is not None, name
        return self.table.alive[lifecycle.start(parent, found, call, stream)]

    async def call(self, call: Syscall, process: Process | None = None) -> Any:
        """Make a system call in the name of the client, or of `process`; failures are counted as by a connection."""
        try:
            answer = self.kernel.gate.enter(process or self.client, call)
            return await self.thread(answer, process) if type(answer) is CoroutineType else answer
        except LlmosError as error:
            self.kernel.gate.count_error(error)
            raise

    def thread(self, coro: Coroutine[Any, Any, Any], process: Process | None = None) -> Thread:
        """One more thread of the client, or of `process`."""
        return self.kernel.threads.start_thread(process or self.client, coro)

    async def status(self, process: Process | int) -> ExitStatus:
        """Wait for a process to end; return its exit status."""
        pid = process if isinstance(process, int) else process.pid
        status: ExitStatus = await self.call(Wait(pid))
        return status

    async def thread_states(self, process: Process) -> dict[str, str]:
        """The state of each thread of a process, by its path."""
        return {row.path: row.state for row in await self.call(Threads(process.pid))}

    async def result(self, process: Process | int) -> Any:
        """Wait for the value of a process. Raises the error of the process."""
        status = await self.status(process)
        if status.error is not None:
            raise from_wire(status.error)
        return reveal(status.value)

    async def run(self, program: Function | str, /, *positional: Any, **args: Any) -> Any:
        """Run a program to its end; return its value. Raises the error of the process."""
        return await self.result(self.spawn(program, *positional, **args))

    # ---- tasks in the journal

    async def submit(self, call: Submit, stream: Stream | None = None) -> Submitted:
        submitted: Submitted = await self.thread(self.kernel.gate.enter(self.client, call, stream))
        return submitted

    async def attach(self, task: str) -> Recorder:
        """Attach to a task; return the recorder of its events."""
        recorder = self.recorder()
        answer = self.kernel.gate.enter(self.client, Attach(task), recorder.stream)
        if asyncio.iscoroutine(answer):
            await self.thread(answer)
        return recorder

    async def dead_letters(self) -> int:
        """The number of dead letters so far."""
        stats: Stats = await self.call(GetStats())
        return stats.dead_letters

    async def history(self) -> list[TaskInfo]:
        rows: list[TaskInfo] = await self.call(History())
        return rows

    # ---- time

    def look(self) -> None:
        """Let the kernel sample the machine, as it does every second in a daemon."""
        pids = [driver.pid for driver in self.launcher.alive if driver.pid is not None]
        self.kernel.resources.observe(self.machine.sample(pids))

    async def turns(self, count: int = 10) -> None:
        """Let ready threads run, without time passing."""
        for _ in range(count):
            await asyncio.sleep(0)

    async def until(self, condition: Callable[[], Any]) -> None:
        """Return once `condition` holds."""
        while not condition():
            await asyncio.sleep(0.001)

    # ---- inside of the kernel

    @property
    def driver(self) -> InLoopDriver:
        """The latest incarnation of a driver."""
        return self.launcher.driver

    def runtime(self, model: str = "sim") -> ModelRuntime:
        return self.kernel.resources.runtime(model)

    def sequences(self, process: Process) -> list[Sequence]:
        """The sequences of `process` that have not ended, in the order of their calls."""
        return list(self.kernel.resources.calls.of_process(process))

    @property
    def runtimes(self) -> Collection[ModelRuntime]:
        """The runtimes of all models that were used."""
        return self.kernel.resources._runtimes.values()

    @property
    def swap(self) -> Path:
        """The folder of all swap files."""
        return self.kernel.resources.area._root

    @property
    def names(self) -> Mapping[str, Process]:
        """Registered names, with the processes that have them."""
        return self.kernel.names._holders

    @property
    def tasks(self) -> Tasks:
        """The task subsystem; the kernel has one if it has a journal."""
        assert self.kernel.tasks is not None
        return self.kernel.tasks

    @property
    def journal(self) -> Journal:
        return self.tasks._journal

    def restart_without_jitter(self) -> None:
        """Let supervisors pause before each restart for exactly as long as they plan to."""
        self.kernel.supervision._chance = lambda: 0.0

    def asyncio_tasks(self) -> set[asyncio.Future[Any]]:
        """All asyncio tasks but the test's own and the drivers'."""
        own = {asyncio.current_task(), *(driver.task for driver in self.launcher.drivers)}
        return {task for task in asyncio.all_tasks() if task not in own}

    # ---- the end

    def kill_all(self) -> None:
        """Kill all processes, those of clients too."""
        for process in tuple(self.table.alive.values()):
            self.kernel.process_exit.end(process, "killed", "the test is over")

    async def end(self) -> None:
        """Kill all processes, give them time to end, and check that nothing is left of them."""
        self.kill_all()
        await asyncio.sleep(10)
        assert self.table.alive == {}
        assert not [task for task in asyncio.all_tasks() if isinstance(task, Thread)]
        for runtime in self.runtimes:
            active = runtime.active
            assert (active.leases.taken, active.leases.queue, active.sequences, active.awaiting_driver) == (
                set(),
                [],
                {},
                False,
            )
            assert (active.pager.swapped, active.pager.swapping_out) == (set(), {})
            assert runtime._driver._tasks == set()
        assert self.kernel.resources._residency._waiting == {}
        for driver in self.launcher.alive:
            assert (driver.sequences, driver.queries, driver.memory.used) == ({}, {}, 0)
        assert [path for path in self.swap.rglob("*") if path.is_file()] == []

    def close(self) -> None:
        """Like `end`, from outside the loop. Closes the kernel and the loop."""

        async def closing() -> None:
            await self.end()
            await self.kernel.close()

        self.loop.run_until_complete(closing())
        self.loop.close()
