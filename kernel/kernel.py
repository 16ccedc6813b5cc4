"""The kernel: puts the subsystems together around one gate, on one event loop.

Made by the daemon. It owns every table and starts nothing by itself: work comes from clients and agents.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
import time
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from pathlib import Path
from typing import Any, cast

import structlog

from ipc.syscalls import Checkpoint, DrawRandom, GetTime, Shutdown, Sleep
from kernel.alarms import Alarm
from kernel.checks import check_seconds
from kernel.control import Control
from kernel.dispatcher import Dispatcher
from kernel.drivers.process import Launcher, launch
from kernel.durable.durability import Durability
from kernel.ending import Ending
from kernel.gate import Gate
from kernel.instruments import Instruments
from kernel.journal.histories import Opening
from kernel.journal.journal import Journal
from kernel.lifecycle import Lifecycle
from kernel.limits import LimitKeeper, LimitSettings
from kernel.machine import Machine, ThisMachine
from kernel.memory.bounds import MemoryBounds
from kernel.memory.private import PrivateMemory
from kernel.memory.shared import SharedMemory
from kernel.messaging import Messaging
from kernel.names import NameRegistry
from kernel.output import Output
from kernel.process import Process, ProcessTable
from kernel.programs import Programs
from kernel.publication import Publication
from kernel.receiving import Receiving
from kernel.scheduling import Scheduling
from kernel.slots.model import ModelSpec
from kernel.slots.resources import ResourceManager
from kernel.slots.settings import ResourceSettings
from kernel.status import Status
from kernel.supervision.crashes import CrashReports
from kernel.supervision.links import Links
from kernel.supervision.supervision import Supervision
from kernel.sync.named import Synchronisation
from kernel.tasks import Tasks
from kernel.thread import PARK, Thread
from kernel.threads import Threads
from kernel.tools.tool import ToolSpec
from kernel.tools.tools import ToolSubsystem
from kernel.watchdog import Watchdog

log = structlog.get_logger("kernel")


class Kernel:
    """The microkernel. `make_context` builds what an agent sees of it, from the gate and the agent's process; `swap` is
    the folder of sequences on disk, by default one below `cache`; `journal` keeps what clients submit, and without one
    nothing can be submitted."""

    def __init__(
        self,
        *,
        version: str,
        folders: Iterable[Path],
        models: dict[str, ModelSpec],
        default_model: str,
        cache: Path,
        swap: Path | None = None,
        make_context: Callable[[Gate, Process], Any],
        memory: MemoryBounds = MemoryBounds(),  # noqa: B008 - it is frozen
        tools: dict[str, ToolSpec] | None = None,
        limits: LimitSettings = LimitSettings(),  # noqa: B008
        scheduling: Scheduling = Scheduling(),  # noqa: B008
        resources: ResourceSettings = ResourceSettings(),  # noqa: B008
        launcher: Launcher = launch,
        machine: Machine | None = None,
        journal: Journal | None = None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.gate = Gate()
        self.table = ProcessTable()
        self.programs = Programs(folders)
        self.on_shutdown: Callable[[bool], None] = lambda now: None
        self.instruments = Instruments(self.gate)
        self.dispatcher = dispatcher = Dispatcher(self.loop, self.instruments)
        self.ending = ending = Ending(self.table, dispatcher)
        control = Control(self.table, dispatcher, self.gate)
        self.watchdog = Watchdog(dispatcher, scheduling, ending.end, self.gate.errors)
        self.names = names = NameRegistry(self.table, self.gate)
        self.messaging = messaging = Messaging(self.table, self.gate, dispatcher, names)
        Receiving(self.gate, dispatcher, messaging.dead_letters)
        self.publication = publication = Publication(self.gate, messaging)
        self.links = links = Links(self.table, self.gate, messaging, ending)
        keeper = LimitKeeper(limits, self.loop, self.gate, ending)
        self.threads = Threads(dispatcher, ending, self.gate)
        self.lifecycle = Lifecycle(
            self.table, self.programs, dispatcher, ending, self.threads, self.gate, make_context, names, links, keeper
        )
        self.shared = SharedMemory(self.gate, memory)
        self.opened = journal is None  # until then nobody can be told what there is
        self.on_opened: list[Callable[[], None]] = []
        self._submitted: Tasks | None = None
        self._durability: Durability | None = None
        if journal is not None:
            self._durability = durability = Durability(
                journal,
                self.gate,
                self.table,
                self.lifecycle,
                self.programs,
                dispatcher,
                ending,
                messaging,
                publication,
                names,
                links,
                self.shared,
                control,
                make_context,
            )
            journal.on_opened = partial(self._opened, durability)
            self._submitted = Tasks(
                journal, self.table, self.lifecycle, ending, self.programs, self.gate, durability.processes
            )
        crashes = CrashReports(self.gate)
        self.supervision = Supervision(self.table, self.gate, self.lifecycle, ending)
        swap = cache / "swap" if swap is None else swap
        machine = ThisMachine(swap) if machine is None else machine
        self.resources = ResourceManager(
            models, default_model, cache, swap, launcher, machine, self.gate, keeper, scheduling, resources
        )
        if self._durability is not None:
            self._durability.serve(self.resources)
        output = Output(self.table, self.gate)
        self.memory = PrivateMemory(self.gate, memory, keeper)
        self.tools = ToolSubsystem(tools or {}, self.programs, self.shared, self.gate, self.loop)
        self.synchronisation = synchronisation = Synchronisation(self.gate)
        Status(
            version,
            self.table,
            self.programs,
            self.gate,
            ending,
            messaging,
            self.watchdog,
            self.resources,
            self._submitted,
        )
        self.gate.register({Sleep: self._sleep, Shutdown: self._shutdown})
        self.gate.register({GetTime: _time, DrawRandom: _random, Checkpoint: lambda process, call: call.state})
        control.on_suspend.append(self.resources.suspended)
        control.on_resume.append(self.resources.resumed)
        control.on_nice.append(self.resources.ranked)
        messaging.on_urgency = self.resources.urged
        ending.on_end += [crashes.process_ended, links.process_ended, keeper.process_ended]
        ending.on_end += [names.process_ended, publication.process_ended, messaging.process_ended, output.process_ended]
        ending.on_end += [self.memory.process_ended, self.shared.process_ended, self.tools.process_ended]
        ending.on_end.append(self.resources.process_ended)
        ending.on_thread_end.append(synchronisation.thread_ended)
        self.loop.set_task_factory(cast(Any, self._make_task))

    def _opened(self, durability: Durability, opening: Opening) -> None:
        durability.opened(opening)
        self.opened = True
        waiting, self.on_opened = self.on_opened, []
        for callback in waiting:
            callback()

    async def drain(self, timeout: float) -> None:
        """Take no new tasks, let the running ones end for `timeout` seconds, then kill what is left."""
        self.lifecycle.draining = True
        tasks = self._tasks()
        if tasks and timeout > 0:
            log.info("draining", tasks=len(tasks), seconds=timeout)
            await self._all_ended(tasks, timeout)
        if self._submitted is not None:
            self._submitted.stop()
        if self._durability is not None:
            await self._durability.generations.put_aside()
        for process in self._tasks():
            self.ending.end(process, "killed", "the daemon shuts down")
        await self._all_ended(self._tasks(), None)
        if self._submitted is not None:
            await self._submitted.settled()

    async def close(self) -> None:
        """End the connections' processes, the drivers and the journal. Call after `drain`."""
        if self._submitted is not None:
            self._submitted.stop()
        for process in tuple(self.table.alive.values()):
            self.ending.end(process, "killed", "the daemon shuts down")
        self.tools.close()
        await self.resources.close()
        if self._submitted is not None:
            await self._submitted.close()
        self.loop.set_task_factory(None)

    def _tasks(self) -> list[Process]:
        return [process for process in self.table.alive.values() if not process.is_client]

    async def _all_ended(self, processes: list[Process], timeout: float | None) -> None:
        gone = asyncio.Event()
        left = len(processes)

        def one_less(_: Process) -> None:
            nonlocal left
            left -= 1
            if not left:
                gone.set()

        for process in processes:
            process.watch(one_less)
        if processes:
            try:
                async with asyncio.timeout(timeout):
                    await gone.wait()
            except TimeoutError:
                log.warning("tasks did not end in time", tasks=left)

    def _make_task(
        self,
        loop: asyncio.AbstractEventLoop,
        coro: Coroutine[Any, Any, Any],
        *,
        context: contextvars.Context | None = None,
        name: str | None = None,
        **_: Any,  # what later versions of asyncio pass, such as eager_start
    ) -> asyncio.Future[Any]:
        """A task made by agent code is a thread of its process: counted, suspended and killed with it."""
        maker = asyncio.current_task(loop)
        if isinstance(maker, Thread):
            if maker.done():
                coro.close()
                raise RuntimeError("a thread that was given up starts no other one")
            return self.threads.start_thread(maker.process, coro, context=context, name=name)
        return asyncio.Task(coro, loop=loop, context=context, name=name)

    async def _sleep(self, process: Process, call: Sleep) -> None:
        seconds = check_seconds(call.seconds, "the time to sleep")
        thread = cast(Thread, asyncio.current_task())
        alarm = Alarm(thread, seconds)
        try:
            while not alarm.rung:
                thread.waits_for = "time"
                await PARK
        finally:
            alarm.cancel()

    def _shutdown(self, process: Process, call: Shutdown) -> None:
        self.on_shutdown(call.now)


def _time(process: Process, call: GetTime) -> float:
    return time.time()


def _random(process: Process, call: DrawRandom) -> float:
    return random.random()
