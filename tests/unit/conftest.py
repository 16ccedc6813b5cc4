"""Virtual time, a kernel with its simulated driver on the test's own loop, and small drivers of both.

Async tests run on `VirtualTimeLoop`: no test sleeps, and one that waits for nothing fails instead of hanging. Those
marked `real_time` need sockets or processes of the operating system, and run on asyncio's own loop and on uvloop.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from pathlib import Path
from types import CoroutineType
from typing import Any

import pytest
import uvloop

from ipc.abi import AgentMark
from ipc.codec import decode, encode, reveal
from ipc.errors import LlmosError, from_wire
from ipc.messages import Event
from ipc.syscalls import ExitStatus, Spawn, Syscall, Wait
from kernel.drivers import protocol
from kernel.drivers.process import EXIT_GRACE, OnExit, OnMessage
from kernel.drivers.simulated import SimulatedDevice
from kernel.kernel import Kernel
from kernel.limits import LimitSettings
from kernel.machine import Sample
from kernel.process import Process
from kernel.programs import Function, Program
from kernel.scheduling import Scheduling
from kernel.slots.model import ModelSpec
from kernel.slots.settings import ResourceSettings
from kernel.stream import Stream
from kernel.thread import Thread
from llmosd.context import Context

# ---- time


class _JumpingSelector(selectors.DefaultSelector):
    """Where the loop would sleep until its next timer, the clock moves instead (trio's autojump clock)."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.executing = 0  # calls in worker threads, during which no time passes

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            return super().select(0)
        if self.executing:
            return super().select(None)
        if events := super().select(0):
            return events
        if timeout is None:
            raise RuntimeError("deadlock: nothing is ready, and no timer will ever make it so")
        self.now += timeout
        return []


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A loop whose time stands still while anything runs and jumps to the next timer when nothing does."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = super().run_in_executor(executor, func, *args)
        self._jumping.executing += 1
        future.add_done_callback(self._executed)
        return future

    async def shutdown_default_executor(self) -> None:
        self._jumping.executing += 1
        try:
            await super().shutdown_default_executor()
        finally:
            self._jumping.executing -= 1

    def _executed(self, _: asyncio.Future[Any]) -> None:
        self._jumping.executing -= 1


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "real_time: needs sockets or processes; runs on asyncio's loop and on uvloop")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    if item.get_closest_marker("real_time") is None:
        return {"virtual": VirtualTimeLoop}
    return {"asyncio": asyncio.SelectorEventLoop, "uvloop": uvloop.new_event_loop}


# ---- the driver

FIRST_PID = 10_000_000  # of drivers that are no processes


class InLoopDriver:
    """One incarnation of the simulated driver, on the loop of the test. `sent` and `said` hold all messages."""

    def __init__(self, name: str, pid: int, on_message: OnMessage, on_exit: OnExit) -> None:
        self.name = name
        self.pid: int | None = pid
        self.sent: list[protocol.ToDriver] = []  # by the kernel
        self.said: list[protocol.FromDriver] = []  # by the driver
        self.alive = True
        self.stopped = False
        self.on_message = on_message
        self._on_exit = on_exit
        self._loop = asyncio.get_running_loop()
        self._gone = asyncio.Event()
        self.device = SimulatedDevice(self._say, lambda code: self.die(f"exit code {code}"))
        # asyncio.Task, so that it is no thread of the agent whose call started it.
        self._task: asyncio.Task[None] = asyncio.Task(self.device.run(), loop=self._loop)

    def send(self, message: protocol.ToDriver) -> None:
        copy = decode(encode(message), protocol.ToDriver)
        self.sent.append(copy)
        if self.alive:
            self._loop.call_soon(self._handle, copy)

    async def stop(self) -> None:
        self.stopped = True
        self.send(protocol.Stop())
        try:
            async with asyncio.timeout(EXIT_GRACE):
                await self._gone.wait()
        except TimeoutError:
            self.kill()
            await self._gone.wait()

    def kill(self) -> None:
        self.die("signal 9")

    def die(self, how: str = "killed by the test") -> None:
        """End at once, as by SIGKILL: what it said before still arrives, then its exit."""
        if self.alive:
            self.alive = False
            self._task.cancel()
            self.device._sequences.clear()  # so that its timers do nothing more
            self._loop.call_soon(self._exit, how)

    def sent_of(self, kind: type) -> list[Any]:
        """What the kernel sent of one kind."""
        return [message for message in self.sent if isinstance(message, kind)]

    def _handle(self, message: protocol.ToDriver) -> None:
        if self.alive:
            self.device.handle(message)

    def _say(self, message: protocol.FromDriver) -> None:
        if self.alive:
            self.said.append(message)
            self._loop.call_soon(self.on_message, decode(encode(message), protocol.FromDriver))

    def _exit(self, how: str) -> None:
        self._gone.set()
        self._on_exit(how)


class InLoopLauncher:
    """Launches `InLoopDriver`s. `refusals` are raised by the next launches, one each."""

    def __init__(self) -> None:
        self.drivers: list[InLoopDriver] = []
        self.refusals: list[BaseException] = []
        self.kinds: list[tuple[str, str]] = []

    async def __call__(self, kind: str, name: str, on_message: OnMessage, on_exit: OnExit) -> InLoopDriver:
        self.kinds.append((kind, name))
        if self.refusals:
            raise self.refusals.pop(0)
        driver = InLoopDriver(name, FIRST_PID + len(self.kinds), on_message, on_exit)
        self.drivers.append(driver)
        return driver

    @property
    def driver(self) -> InLoopDriver:
        """The latest incarnation."""
        return self.drivers[-1]

    @property
    def alive(self) -> list[InLoopDriver]:
        """Those that have not ended."""
        return [driver for driver in self.drivers if driver.alive]


class FakeMachine:
    """A machine of 16 GB. `sizes`: bytes that the driver of a model takes, besides its keys and values."""

    def __init__(self, launcher: InLoopLauncher) -> None:
        self.cores = [0, 1, 2, 3]
        self.total = self.available = 16_000_000_000
        self.sizes: dict[str, int] = {}
        self.killed = 0
        self.disk_free = 10**11
        self._launcher = launcher

    def sample(self, pids: Iterable[int]) -> Sample:
        return Sample(
            cpu=0.5,
            memory_total=self.total,
            memory_available=self.available,
            disk_total=10**12,
            disk_free=self.disk_free,
            rss={pid: self.resident(pid) for pid in pids},
            oom_kills=self.killed,
        )

    def oom_kills(self) -> int:
        return self.killed

    def resident(self, pid: int) -> int:
        driver = next((driver for driver in self._launcher.drivers if driver.pid == pid), None)
        if driver is None:
            return 0
        device = driver.device
        leaked = sum(map(len, device._ballast))
        return (self.sizes.get(driver.name, 0) + device._memory.used + leaked) * driver.alive


# ---- the kernel


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


class System:
    """A kernel, its driver, and one client in whose name the test makes system calls."""

    def __init__(self, kernel: Kernel, launcher: InLoopLauncher, machine: FakeMachine | None = None) -> None:
        self.kernel = kernel
        self.launcher = launcher
        self.machine = machine or FakeMachine(launcher)
        self.loop = kernel.loop
        self.table = kernel.table
        self.client = kernel.lifecycle.open_client("test")
        self.programs = kernel.programs
        self.programs._installed = []

    @property
    def driver(self) -> InLoopDriver:
        return self.launcher.driver

    def program(self, function: Function, name: str | None = None) -> str:
        """Make `function` a program; its name."""
        program = Program(function, AgentMark(name or function.__name__, ""), "test")
        assert self.programs._installed is not None
        self.programs._installed.append(program)
        self.programs.by_name[program.name] = program
        return program.name

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
        """Start a program that needs no loading; its process, before its first step."""
        name = program if isinstance(program, str) else self.program(program)
        call = Spawn(name, args, positional, priority=priority, deadline=deadline, detach=detach)
        pid = self.kernel.lifecycle.spawn(parent or self.client, call, stream)
        assert isinstance(pid, int)
        return self.table.alive[pid]

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
        """How a process ended, when it has."""
        pid = process if isinstance(process, int) else process.pid
        status: ExitStatus = await self.call(Wait(pid))
        return status

    async def result(self, process: Process | int) -> Any:
        """The value of a process. Raises its error."""
        status = await self.status(process)
        if status.error is not None:
            raise from_wire(status.error)
        return reveal(status.value)

    async def run(self, program: Function | str, /, *positional: Any, **args: Any) -> Any:
        """Run a program to its end; its value. Raises its error."""
        return await self.result(self.spawn(program, *positional, **args))

    def look(self) -> None:
        """Have the kernel look at the machine, as it does every second in a daemon."""
        pids = [driver.pid for driver in self.launcher.alive if driver.pid is not None]
        self.kernel.resources.observe(self.machine.sample(pids))

    async def turns(self, count: int = 10) -> None:
        """Let whatever is ready run, without time passing."""
        for _ in range(count):
            await asyncio.sleep(0)

    def tasks(self) -> set[asyncio.Future[Any]]:
        """All asyncio tasks but the test's own and the drivers'."""
        own = {asyncio.current_task(), *(driver._task for driver in self.launcher.drivers)}
        return {task for task in asyncio.all_tasks() if task not in own}


FAST = {"step_seconds": 1.0, "sequence_seconds": 0.0, "prompt_seconds": 0.0, "reply_tokens": 8}


@pytest.fixture
def models() -> dict[str, ModelSpec]:
    """The models of the kernel: a step takes one second, and there are two slots. Tests may override this."""
    return {"sim": ModelSpec(driver="simulated", slots=2, lease=4, options=FAST)}


@pytest.fixture
def limits() -> LimitSettings:
    """The limits that the kernel is set up with. Tests may override this."""
    return LimitSettings()


@pytest.fixture
def scheduling() -> Scheduling:
    """How the kernel schedules. Tests may override this."""
    return Scheduling()


@pytest.fixture
def resources() -> ResourceSettings:
    """What all models share. Tests may override this."""
    return ResourceSettings()


@pytest.fixture
async def system(
    tmp_path: Path,
    models: dict[str, ModelSpec],
    limits: LimitSettings,
    scheduling: Scheduling,
    resources: ResourceSettings,
) -> AsyncIterator[System]:
    """A booted kernel on the loop of the test."""
    launcher = InLoopLauncher()
    machine = FakeMachine(launcher)
    kernel = Kernel(
        version="test",
        folders=[tmp_path / "agents"],
        models=models,
        default_model=next(iter(models)),
        cache=tmp_path / "cache",
        swap=tmp_path / "swap",
        make_context=Context,
        limits=limits,
        scheduling=scheduling,
        resources=resources,
        launcher=launcher,
        machine=machine,
    )
    yield System(kernel, launcher, machine)
    for process in tuple(kernel.table.alive.values()):
        kernel.ending.end(process, "killed", "the test is over")
    if isinstance(kernel.loop, VirtualTimeLoop):
        # Whatever the test did, nothing is left once all have had their time to go.
        await asyncio.sleep(10)
        assert kernel.table.alive == {}
        assert not [task for task in asyncio.all_tasks() if isinstance(task, Thread)]
        for runtime in kernel.resources._runtimes.values():
            work = runtime.work
            assert (work.slots.taken, work.slots.queue, work.sequences, work.owed) == (set(), [], {}, False)
            assert (work.pager.swapped, work.pager.leaving) == (set(), {})
            assert runtime._life._tasks == set()
        assert kernel.resources._residency._waiting == {}
        for driver in launcher.alive:
            device = driver.device
            assert (device._sequences, device._questions, device._memory.used) == ({}, {}, 0)
        assert [path for path in (tmp_path / "swap").rglob("*") if path.is_file()] == []
    await kernel.close()
    assert not any((tmp_path / "swap").glob("*"))
    assert launcher.alive == []


@pytest.fixture
def kernel(system: System) -> Kernel:
    return system.kernel


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Programs, the lives of kernels in which they run, and their journals: see `tests.support.durable_world`."""
    from tests.support.durable_world import World, copy_each_commit

    world = World(tmp_path)
    copy_each_commit(world, monkeypatch)
    return world


# ---- the transformers driver


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets how many threads torch has, for the test."""
    import torch

    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
