"""The kernel: puts the subsystems together around one gate, on one event loop.

Made by the daemon. It owns every table and starts nothing by itself: work comes from clients and agents.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import structlog

from ipc.syscalls import Shutdown
from kernel.core.process import Process
from kernel.core.process_table import ProcessTable
from kernel.dispatch.dispatcher import Dispatcher
from kernel.dispatch.instruments import Instruments
from kernel.dispatch.watchdog import Watchdog
from kernel.drivers.process import Launcher, launch
from kernel.durable import volatile
from kernel.durable.pending_restarts import PendingRestarts
from kernel.durable.wiring import Durability
from kernel.gate import Gate, SystemCalls
from kernel.journal.histories import RecoveredState
from kernel.journal.journal import Journal
from kernel.lib.machine import Machine, ThisMachine
from kernel.memory.private import PrivateMemory
from kernel.memory.quotas import MemoryQuotas
from kernel.memory.shared import SharedMemory
from kernel.messages.messaging import Messaging
from kernel.messages.names import NameRegistry
from kernel.messages.publish import Publisher
from kernel.messages.receive import Receiver
from kernel.models.manager import ResourceManager
from kernel.models.settings import ResourceSettings, SchedulingSettings
from kernel.models.spec import ModelSpec
from kernel.processes.control import Control
from kernel.processes.exit import ProcessExit
from kernel.processes.lifecycle import Lifecycle
from kernel.processes.limits import LimitKeeper, LimitSettings
from kernel.processes.output import Output
from kernel.processes.threads import ThreadSubsystem
from kernel.programs.loader import ProgramLoader
from kernel.programs.tool import ToolSpec
from kernel.status import Status
from kernel.supervision.crashes import CrashReports
from kernel.supervision.links import Links
from kernel.supervision.supervision import Supervision
from kernel.sync.registry import Synchronisation
from kernel.tasks.submit import Tasks
from kernel.tools.tools import ToolSubsystem

log = structlog.get_logger("kernel")


class KernelSettings(Protocol):
    """What may be set about the kernel. `model` is the model for calls that name none."""

    models: dict[str, ModelSpec]
    model: str
    scheduling: SchedulingSettings
    limits: LimitSettings
    memory: MemoryQuotas
    resources: ResourceSettings
    tools: dict[str, ToolSpec]

    @property
    def agent_folders(self) -> Sequence[Path]:
        """Where programs are."""

    @property
    def state_path(self) -> Path:
        """The folder for what survives the daemon; sequences on disk are below it."""

    @property
    def cache_path(self) -> Path:
        """The folder for what can be made again."""


class Kernel:
    """The microkernel. `make_context` builds what an agent sees of it, from the gate and the agent's process.

    `journal` persists what clients submit, and without one nothing can be submitted. `on_shutdown` is called when a
    client asks the daemon to stop, with whether it is to stop at once. The parts are made in the order of the layers,
    lowest first: each is given those that it stands on.
    """

    def __init__(
        self,
        settings: KernelSettings,
        make_context: Callable[[SystemCalls, Process], Any],
        *,
        version: str,
        journal: Journal | None = None,
        launcher: Launcher = launch,
        machine: Machine | None = None,
        on_shutdown: Callable[[bool], None] = lambda now: None,
    ) -> None:
        self.loop = loop = asyncio.get_running_loop()
        self._on_shutdown = on_shutdown
        self.opened = journal is None  # until then nobody can be told what there is
        self.on_opened: list[Callable[[], None]] = []  # called once, when it is
        swap, cache = settings.state_path / "swap", settings.cache_path / "models"
        machine = ThisMachine(swap) if machine is None else machine
        scheduling = settings.scheduling

        # core, programs
        self.table = table = ProcessTable()
        self.programs = ProgramLoader(settings.agent_folders)

        # dispatch, gate
        self.gate = gate = Gate()
        self.instruments = Instruments(gate.observe)
        self.dispatcher = dispatcher = Dispatcher(loop, self.instruments)

        # processes, messages, sync
        self.process_exit = process_exit = ProcessExit(table, dispatcher, gate)
        self.threads = ThreadSubsystem(dispatcher, process_exit, gate)
        self.watchdog = Watchdog(dispatcher, scheduling.slow_step, scheduling.burst, process_exit.end, gate.errors)
        self.control = Control(table, dispatcher, process_exit, self.threads, gate)
        self.limits = LimitKeeper(settings.limits, loop, gate, process_exit)
        self.output = Output(table, gate)
        arrivals = PendingRestarts(gate)
        self.names = NameRegistry(table, gate, arrivals.names)
        self.messaging = Messaging(table, gate, dispatcher, self.names)
        self.publication = Publisher(gate, self.messaging)
        Receiver(gate, dispatcher, self.messaging.dead_letters)
        self.synchronisation = Synchronisation(gate)

        # memory, models, supervision
        self.memory = PrivateMemory(gate, settings.memory, self.limits)
        self.shared = SharedMemory(gate, settings.memory)
        self.resources = ResourceManager(
            settings.models,
            settings.model,
            cache,
            swap,
            launcher,
            machine,
            gate,
            self.limits,
            scheduling,
            settings.resources,
        )
        self.links = Links(table, gate, self.messaging, process_exit, arrivals.pids)
        self.crashes = CrashReports(gate)
        admissions = (self.names, self.links, self.limits)  # in the order in which they are asked
        self.lifecycle = Lifecycle(table, self.programs, dispatcher, process_exit, gate, make_context, admissions)
        self.supervision = Supervision(gate, self.lifecycle)

        # durable, tools
        self.tools = ToolSubsystem(settings.tools, self.programs, self.shared, gate, loop)
        volatile.register(gate)
        self.durability: Durability | None = None
        self.tasks: Tasks | None = None
        if journal is not None:
            self.durability = Durability(
                journal,
                gate,
                self.lifecycle,
                self.messaging,
                self.publication,
                self.links,
                self.shared,
                self.resources,
                arrivals,
            )

            # tasks
            self.tasks = Tasks(journal, self.lifecycle, gate, self.durability.processes)

        # status
        Status(version, gate, self.lifecycle, self.messaging, self.watchdog, self.resources, self.tasks)
        gate.register({Shutdown: self._shutdown})
        self._connect(journal)
        loop.set_task_factory(cast("Any", self.threads.make_task))

    def _connect(self, journal: Journal | None) -> None:
        """Set every hook: what a part calls of parts above it, in the order of the calls.

        Each line gives the reason for its place. "Free" stands where any other place would do; those lines follow the
        layers.
        """
        end, control = self.process_exit.on_end, self.control
        self.dispatcher.on_slow.append(self.watchdog.slow)  # alone: nothing else looks at steps
        self.messaging.on_urgency.append(
            self.resources.priority_changed
        )  # alone: only slots rank a process by its callers
        self.process_exit.on_thread_end.append(
            self.synchronisation.thread_ended
        )  # alone: only locks are held by a thread
        if self.durability is not None and self.tasks is not None and journal is not None:
            durable = self.durability
            journal.on_opened.append(durable.opened)  # first: it knows which pids and names are in use
            journal.on_opened.append(self._answer_clients)  # last: then all is there that a client may ask for
            journal.on_pending.append(self.tasks.recovery.recover)  # alone: nothing else begins tasks again
            self.shared.keeper = durable.regions  # alone: a region has one keeper
            control.on_kill.append(self.tasks.written_if_can_be)  # alone: a client waits for the disk, and nothing else
            control.on_suspend.append(durable.processes.suspended)  # before the slots: the write begins meanwhile
            control.on_resume.append(partial(durable.processes.suspended, suspended=False))  # the same
            control.on_nice.append(durable.processes.ranked)  # the same
            end.append(durable.processes.process_ended)  # before the links: what they end finds its task without a root
        control.on_suspend.append(self.resources.suspended)  # last: nothing waits for the slots
        control.on_resume.append(self.resources.resumed)  # the same
        control.on_nice.append(self.resources.ranked)  # the same
        end.append(self.crashes.process_ended)  # before the links: a cause is reported before its consequences
        end.append(self.links.process_ended)  # after the crash report: what they end is a consequence
        end.append(self.limits.process_ended)  # free: takes it off its owner's account
        end.append(self.names.process_ended)  # free: its names can be taken again
        end.append(self.publication.process_ended)  # before messaging: no topic leads to a mailbox that is closed
        end.append(self.messaging.process_ended)  # after the crash report, which quotes the mailbox
        end.append(self.output.process_ended)  # free: ends the streams of its log
        end.append(self.memory.process_ended)  # free: drops its keys
        end.append(self.shared.process_ended)  # free: deletes its ephemeral regions
        end.append(self.tools.process_ended)  # free: forgets its count of calls
        end.append(self.resources.process_ended)  # free: the drivers hear of it with the next turn of the loop

    def _answer_clients(self, opening: RecoveredState) -> None:
        self.opened = True
        waiting, self.on_opened = self.on_opened, []
        for callback in waiting:
            callback()

    async def drain(self, timeout: float) -> None:
        """Take no new tasks, let the running ones end for `timeout` seconds, then kill what is left."""
        self.lifecycle.draining = True
        tasks = self._agents()
        if tasks and timeout > 0:
            log.info("draining", tasks=len(tasks), seconds=timeout)
            await self._all_ended(tasks, timeout)
        if self.tasks is not None:
            self.tasks.stop()
        if self.durability is not None:
            await self.durability.generations.checkpoint_to_disk()
        for process in self._agents():
            self.process_exit.end(process, "killed", "the daemon shuts down")
        await self._all_ended(self._agents(), None)
        if self.tasks is not None:
            await self.tasks.settled()

    async def close(self) -> None:
        """End the connections' processes, the drivers and the journal. Call after `drain`."""
        if self.tasks is not None:
            self.tasks.stop()
        for process in tuple(self.table.alive.values()):
            self.process_exit.end(process, "killed", "the daemon shuts down")
        self.tools.close()
        await self.resources.close()
        if self.tasks is not None:
            await self.tasks.close()
        self.loop.set_task_factory(None)

    def _agents(self) -> list[Process]:
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

    def _shutdown(self, process: Process, call: Shutdown) -> None:
        self._on_shutdown(call.now)
