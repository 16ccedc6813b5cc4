"""The kernel: builds the subsystems around one gate, on one event loop.

The daemon creates the kernel, which owns every table. The kernel never starts work of its own: all work comes from
clients and agents.
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
from kernel.core.traffic import Traffic
from kernel.dispatch.dispatcher import Dispatcher
from kernel.dispatch.instruments import Instruments
from kernel.dispatch.watchdog import Watchdog
from kernel.drivers.process import Launcher, launch
from kernel.durable import volatile
from kernel.durable.pending_restarts import PendingRestarts
from kernel.durable.wiring import Durability
from kernel.event_loop import guards
from kernel.event_loop.belongings import BELONGINGS
from kernel.event_loop.guarded import Guarded
from kernel.explain.explainer import Explainer
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
from kernel.processes.garbage import Garbage
from kernel.processes.lifecycle import Lifecycle
from kernel.processes.limits import LimitEnforcer, LimitSettings
from kernel.processes.output import Output
from kernel.processes.printing import Printing
from kernel.processes.threads import ThreadSubsystem
from kernel.programs.loader import ProgramLoader
from kernel.programs.tool import ToolSpec
from kernel.programs.watch import ProgramWatch
from kernel.status import Status
from kernel.supervision.crashes import CrashReports
from kernel.supervision.links import Links
from kernel.supervision.supervision import Supervision
from kernel.sync.registry import Synchronisation
from kernel.tasks.submit import Tasks
from kernel.tools.tools import ToolSubsystem

ENDS_SECONDS = 3.0  # that the journal stays open for the ends of processes: longer than the grace of their threads

log = structlog.get_logger("kernel")


class KernelSettings(Protocol):
    """The settings that the kernel reads. A call that names no model goes to `model`."""

    models: dict[str, ModelSpec]
    model: str
    scheduling: SchedulingSettings
    limits: LimitSettings
    memory: MemoryQuotas
    resources: ResourceSettings
    tools: dict[str, ToolSpec]

    @property
    def agent_folders(self) -> Sequence[Path]:
        """The folders that contain programs."""

    @property
    def state_path(self) -> Path:
        """The folder for state that survives the daemon. Swapped-out sequences are in a folder below it."""

    @property
    def cache_path(self) -> Path:
        """The folder for files that can be regenerated."""


class Kernel:
    """The microkernel. `make_context` builds the context of an agent from the gate and the agent's process.

    `journal` persists the tasks that clients submit; without a journal no task can be submitted. `on_shutdown` is
    called when a client asks the daemon to stop; its argument says whether to stop immediately. The constructor builds
    the parts in the order of the layers, lowest first, and passes to each part the parts that it depends on.
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
        guards.install(loop)
        self._on_shutdown = on_shutdown
        self.opened = journal is None  # whether the journal was read; until then no client is welcomed
        self.on_opened: list[Callable[[], None]] = []  # called once, when the journal was read
        swap, cache = settings.state_path / "swap", settings.cache_path / "models"
        machine = ThisMachine(swap) if machine is None else machine
        scheduling = settings.scheduling

        # core, programs
        self.table = table = ProcessTable()
        self.traffic = Traffic(loop)
        self.programs = ProgramLoader(settings.agent_folders)
        self.program_watch = ProgramWatch(self.programs)

        # dispatch, gate
        self.gate = gate = Gate()
        self.instruments = Instruments(gate.observe)
        self.dispatcher = dispatcher = Dispatcher(loop, self.instruments)

        # processes, messages, sync
        self.process_exit = process_exit = ProcessExit(table, dispatcher, gate)
        self.threads = ThreadSubsystem(dispatcher, process_exit, gate)
        self.garbage = Garbage(table, loop)
        self.watchdog = Watchdog(dispatcher, scheduling.slow_step, scheduling.burst, process_exit.end, gate.errors)
        self.control = Control(table, dispatcher, process_exit, self.threads, gate)
        self.limits = LimitEnforcer(settings.limits, loop, gate, process_exit)
        self.output = Output(table, gate)
        self.printing = Printing(loop)
        self._pending_restarts = pending_restarts = PendingRestarts(gate)
        self.names = NameRegistry(table, gate, pending_restarts.names)
        self.messaging = Messaging(table, gate, dispatcher, self.names, settings.memory.message_bytes)
        self.publication = Publisher(gate, self.messaging)
        Receiver(gate, dispatcher, self.messaging.dead_letters, self.messaging.inheritance)
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
        self.links = Links(table, gate, self.messaging, process_exit, pending_restarts.pids)
        self.crashes = CrashReports(table, gate)
        admissions = (self.names, self.links, self.limits)  # asked in this order
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
                pending_restarts,
                self.program_watch,
            )

            # tasks
            self.tasks = Tasks(journal, self.lifecycle, gate, self.durability.processes, self.program_watch)

        # explain, status
        Explainer(gate, table, dispatcher, self.limits, self.tasks)
        Status(version, gate, self.lifecycle, self.messaging, self.watchdog, self.resources, self.tasks)
        gate.register({Shutdown: self._shutdown})
        self._connect(journal)
        loop.set_task_factory(cast("Any", self.threads.make_task))

    def _connect(self, journal: Journal | None) -> None:
        """Fill every hook: the lists of functions through which a part calls the parts above it, in calling order.

        The comment of a line gives the reason for its position in the list of its hook. "Only" means that the list has
        no other function, "free" that the line could stand anywhere in its list. Free lines follow the order of the
        layers.
        """
        end, control = self.process_exit.on_end, self.control
        self.gate.steps = self.dispatcher  # no list: one dispatcher runs the threads that make the calls
        self.dispatcher.on_slow.append(self.watchdog.log_slow_step)  # only: nothing else watches steps
        inheritance = self.messaging.inheritance
        inheritance.on_change.append(self.resources.priority_changed)  # only: it matters on the slots of models alone
        self.process_exit.on_thread_end.append(self.synchronisation.thread_ended)  # only: threads hold just locks
        if isinstance(self.loop, Guarded):
            self.loop.on_exit[:] = [self.threads.callback_exited]  # only: an earlier kernel on this loop is closed
        if self.durability is not None and self.tasks is not None and journal is not None:
            durable = self.durability
            journal.on_opened.append(durable.opened)  # first: it takes over the pids and names that are in use
            journal.on_opened.append(self.tasks.recovery.trials.opened)  # before clients: it may delay their tasks
            journal.on_opened.append(self._answer_clients)  # last: now everything that clients may ask for exists
            self._pending_restarts.why_unstarted = self.tasks.recovery.why_unstarted  # no list: one part restarts tasks
            journal.on_pending.append(self.tasks.recovery.recover)  # only: nothing else restarts tasks
            self.shared.journal = durable.regions  # no list: regions have one journal
            self.table.pids.on_low.append(durable.reserve_pids)  # only: nothing else writes pids
            control.on_kill.append(self.tasks.killed)  # only: a client's kill waits for nothing but the disk
            control.on_missing.append(self.tasks.killer.kill_process)  # only: no other part has pids without processes
            control.on_suspend.append(durable.processes.suspended)  # before the slots: the write starts sooner
            control.on_resume.append(partial(durable.processes.suspended, suspended=False))  # the same
            control.on_nice.append(durable.processes.priority_set)  # the same
            end.append(durable.processes.process_ended)  # before the links: what they end must find no ended root
        control.on_suspend.append(inheritance.suspension_changed)  # free: what it calls is less urgent without it
        control.on_resume.append(inheritance.suspension_changed)  # free: the same
        control.on_nice.append(inheritance.priority_set)  # free: the same
        control.on_suspend.append(self.resources.suspended)  # last: the call does not wait for the slots
        control.on_resume.append(self.resources.resumed)  # the same
        control.on_nice.append(self.resources.priority_set)  # the same
        end.append(self.printing.process_ended)  # before the crash report, which quotes the last lines
        end.append(self.crashes.process_ended)  # before the links: a cause is reported before its consequences
        end.append(self.links.process_ended)  # after the crash report: the processes that links end are consequences
        end.append(self.garbage.process_ended)  # free: counts the process
        end.append(self.limits.process_ended)  # free: takes the process off its owner's account
        end.append(self.names.process_ended)  # free: releases its names
        end.append(self.publication.process_ended)  # before messaging: no topic may lead to a closed mailbox
        end.append(self.messaging.process_ended)  # after the crash report, which quotes the mailbox
        end.append(self.output.process_ended)  # free: ends the streams that follow its log
        end.append(self.memory.process_ended)  # free: drops its private memory
        end.append(self.shared.process_ended)  # free: deletes its ephemeral regions
        end.append(self.tools.process_ended)  # free: drops its count of tool calls
        end.append(partial(guards.process_ended, self.loop))  # free: closes its servers, connections and subprocesses
        end.append(self.resources.process_ended)  # free: the drivers are notified on the next turn of the loop

    def _answer_clients(self, opening: RecoveredState) -> None:
        """The journal was read: notify the connections that have waited for this."""
        self.opened = True
        waiting, self.on_opened = self.on_opened, []
        for callback in waiting:
            try:
                callback()
            except Exception:
                log.exception("a client could not be welcomed")

    async def drain(self, timeout: float) -> None:
        """Refuse new tasks, give the running agents up to `timeout` seconds to end, then kill the remaining ones."""
        self.lifecycle.draining = True
        if self.tasks is not None:
            self.tasks.drain()
        agents = self._agents()
        if agents and timeout > 0:
            log.info("draining", tasks=len(agents), seconds=timeout)
            await self._all_ended(agents, timeout)
        if self.tasks is not None:
            self.tasks.stop()
        if self.durability is not None:
            await self.durability.generations.checkpoint_to_disk()
        self._interrupt(self._agents())
        await self._all_ended(self._agents(), None)
        if self.tasks is not None:
            await self.tasks.wait_for_ends()

    async def close(self) -> None:
        """End the connections' processes, the journal and the drivers. Call after `drain`.

        Each part is closed whatever the others do: the journal waits for no driver, subprocess or worker thread.
        """
        self.program_watch.stop()
        if self.tasks is not None:
            self.tasks.stop()
        self._interrupt(list(self.table.alive.values()))
        self.tools.close()
        parts = self._close_journal(), BELONGINGS.close(), self.resources.close()
        outcomes = await asyncio.gather(*parts, return_exceptions=True)
        self.loop.set_task_factory(None)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _close_journal(self) -> None:
        """Close the journal as soon as no process can write to it any more."""
        await self._all_ended(list(self.table.alive.values()), ENDS_SECONDS)
        if self.durability is not None:
            self.durability.close()
        if self.tasks is not None:
            await self.tasks.close()

    def _interrupt(self, processes: list[Process]) -> None:
        """End `processes`, because the daemon stops."""
        if self.tasks is not None:
            self.tasks.interrupt(processes)
        for process in processes:
            self.process_exit.end(process, "killed", "the daemon shuts down")

    def _agents(self) -> list[Process]:
        return [process for process in self.table.alive.values() if not process.is_client]

    async def _all_ended(self, processes: list[Process], timeout: float | None) -> None:
        all_ended = asyncio.Event()
        left = len(processes)

        def process_ended(_: Process) -> None:
            nonlocal left
            left -= 1
            if not left:
                all_ended.set()

        for process in processes:
            process.watch(process_ended)
        if processes:
            try:
                async with asyncio.timeout(timeout):
                    await all_ended.wait()
            except TimeoutError:
                log.warning("tasks did not end in time", tasks=left, seconds=timeout)

    def _shutdown(self, process: Process, call: Shutdown) -> None:
        self._on_shutdown(call.now)
