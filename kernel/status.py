"""The status subsystem: answers questions about processes, programs, mailboxes, counters and the machine.

The gate calls its handlers. They read the tables of other subsystems, and never change them.
"""

from __future__ import annotations

import bisect
import itertools
import os
import time
from collections.abc import Iterator

import psutil

from ipc.syscalls import (
    DeadLetter,
    DeadLetters,
    DescribeProgram,
    GetStats,
    Heading,
    PeekMailbox,
    Ping,
    Pong,
    ProcessInfo,
    ProgramInfo,
    Programs,
    Ps,
    Stats,
    Usage,
)
from kernel.core.process import Process
from kernel.dispatch.watchdog import Watchdog
from kernel.gate import Gate
from kernel.lib.pages import from_place, shortened, small_row
from kernel.lib.validation import check_text
from kernel.messages.dead_letters import heading
from kernel.messages.messaging import Messaging
from kernel.models.manager import ResourceManager
from kernel.processes.lifecycle import MAX_PROGRAM, Lifecycle
from kernel.tasks.submit import Tasks


class Status:
    """The handlers of these calls. `version` is the version of the daemon; `tasks` is None without a journal."""

    def __init__(
        self,
        version: str,
        gate: Gate,
        lifecycle: Lifecycle,
        messaging: Messaging,
        watchdog: Watchdog,
        resources: ResourceManager,
        tasks: Tasks | None,
    ) -> None:
        self._version = version
        self._table = lifecycle.table
        self._programs = lifecycle.programs
        self._gate = gate
        self._process_exit = lifecycle.process_exit
        self._messaging = messaging
        self._watchdog = watchdog
        self._resources = resources
        self._tasks = tasks
        self._started = time.monotonic()
        self._daemon = psutil.Process()
        gate.register({Ps: self.ps, Programs: self.programs, GetStats: self.stats, Ping: self.ping})
        gate.register({DescribeProgram: self.describe_program, PeekMailbox: self.peek, DeadLetters: self.dead_letters})

    def ping(self, process: Process, call: Ping) -> Pong:
        return Pong(call.payload)

    def ps(self, process: Process, call: Ps) -> list[ProcessInfo]:
        now = time.monotonic()
        pids = sorted(self._table.alive)  # a durable process that restarted with its old pid is at the end of the table
        page = (self._table.alive[pid] for pid in pids[bisect.bisect_left(pids, call.start) :])
        rows = (_row(candidate, now) for candidate in page if call.clients or not candidate.is_client)
        unstarted = self._unstarted() if call.tasks and not call.start and self._tasks is not None else ()
        first = itertools.islice(unstarted, Ps.page // 2)
        return list(itertools.islice(itertools.chain(first, rows), min(call.limit, Ps.page)))

    def _unstarted(self) -> Iterator[ProcessInfo]:
        assert self._tasks is not None
        for task in self._tasks.unstarted():
            yield ProcessInfo(
                pid=0,
                parent=0,
                program=task.program,
                owner=task.owner,
                priority=0,
                state=task.state,
                waits_for=shortened(task.reason),
                threads=0,
                mailbox=0,
                age=task.seconds or 0.0,
                usage=Usage(),
                task=task.id,
            )

    async def programs(self, process: Process, call: Programs) -> list[ProgramInfo]:
        await self._programs.in_worker(self._programs.refresh)
        return [small_row(row) for row in from_place(self._programs.listing(), call.start, Programs)]

    async def describe_program(self, process: Process, call: DescribeProgram) -> ProgramInfo:
        check_text(call.program, "the name of a program", MAX_PROGRAM)
        return await self._programs.in_worker(lambda since: self._programs.look(call.program, None, since).describe())

    def peek(self, process: Process, call: PeekMailbox) -> list[Heading]:
        box = self._table.get(call.pid).mailbox
        waiting = () if box is None else box.peek()
        return [heading(message) for message in from_place(waiting, call.start, PeekMailbox)[: call.limit]]

    def dead_letters(self, process: Process, call: DeadLetters) -> list[DeadLetter]:
        return self._messaging.dead_letters.listing()

    def stats(self, process: Process, call: GetStats) -> Stats:
        alive = self._table.alive.values()
        clients = sum(candidate.is_client for candidate in alive)
        resources, sample = self._resources, self._resources.sample
        times = self._daemon.cpu_times()
        return Stats(
            version=self._version,
            pid=os.getpid(),
            uptime=time.monotonic() - self._started,
            processes=len(alive) - clients,
            threads=sum(len(candidate.threads) for candidate in alive),
            connections=clients,
            exited=dict(self._process_exit.exits),
            calls=self._gate.calls,
            errors=dict(self._gate.errors),
            limits=dict(self._gate.limits),
            dead_letters=len(self._messaging.dead_letters),
            slow_steps=self._watchdog.slow_steps,
            memory=self._daemon.memory_info().rss,
            cpu_seconds=times.user + times.system,
            machine={
                "cores": float(psutil.cpu_count() or 1),
                "cpu": sample.cpu,
                "memory_total": float(sample.memory_total),
                "memory_available": float(sample.memory_available),
                "disk_total": float(sample.disk_total),
                "disk_free": float(sample.disk_free),
                "drivers_memory": float(resources.drivers_memory),
                "drivers_budget": float(resources.drivers_budget),
            },
            gpus=sample.gpus,
            scheduling=resources.scheduling,
            unwritten=0 if self._tasks is None else self._tasks.unwritten,
        )


def _row(process: Process, now: float) -> ProcessInfo:
    state, waits_for = process.state()
    return ProcessInfo(
        pid=process.pid,
        parent=process.parent_pid,
        program=shortened(process.program),
        owner=shortened(process.owner),
        priority=process.priority,
        state=state,
        waits_for=shortened(waits_for),
        threads=len(process.threads),
        mailbox=process.mailbox.count if process.mailbox is not None else 0,
        age=now - process.started,
        usage=process.usage(),
    )
