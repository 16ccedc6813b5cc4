"""The explainer: answers the system call `Why` from the tables of all other rooms.

The gate calls its handler. Each wait explains itself (`ThreadWait` in `kernel/core/plain_wait.py`); the explainer adds
the duration, the timer and the processes behind the wait. It never changes anything, and costs nothing until it is
asked.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import msgspec

from ipc.errors import UnknownTask
from ipc.syscalls import ChainMember, Explanation, WaitFacts, Why
from kernel.core.fiber import BLOCKED, SUSPENDED
from kernel.core.process import Process, Thread
from kernel.core.process_table import ProcessTable
from kernel.dispatch.dispatcher import Dispatcher
from kernel.explain import conditions, tasks
from kernel.explain.notes import notes
from kernel.explain.paragraph import paragraph
from kernel.gate import Gate
from kernel.processes.limits import LimitEnforcer
from kernel.tasks.submit import Tasks

MAX_CHAIN = 8  # processes that an explanation follows, each waiting for the next


class Explainer:
    """Handles `Why`. `tasks` is None without a journal."""

    def __init__(
        self, gate: Gate, table: ProcessTable, dispatcher: Dispatcher, limits: LimitEnforcer, tasks: Tasks | None
    ) -> None:
        self._table = table
        self._dispatcher = dispatcher
        self._limits = limits
        self._tasks = tasks
        gate.register({Why: self.why})

    def why(self, process: Process, call: Why) -> Explanation | Coroutine[Any, Any, Explanation]:
        """Explain the process or task of the call. Raises `UnknownProcess`, `UnknownTask`."""
        if call.task is not None:
            return self._why_task(call.task)
        if self._tasks is not None and call.pid not in self._table.alive:
            unstarted = self._tasks.without_process(call.pid)
            if unstarted is not None:
                return tasks.explanation(unstarted)
        return self._why(self._table.find(call.pid))

    async def _why_task(self, text: str) -> Explanation:
        """Raises `UnknownTask`."""
        if self._tasks is None:
            raise UnknownTask("this daemon has no journal, and so no tasks", id=text[:50])
        outline = await self._tasks.outline(text)
        if outline.pid in self._table.alive:
            return self._why(self._table.alive[outline.pid])
        return tasks.explanation(outline)

    def _why(self, target: Process) -> Explanation:
        thread, facts = self._facts(target)
        chain, cycle = self._chain(target, facts)
        state, waits_for = target.state()
        explanation = Explanation(
            pid=target.pid,
            program=target.program,
            state=state,
            waits_for=waits_for,
            thread="" if thread is None else thread.path,
            threads=len(target.threads),
            wait=facts,
            chain=chain,
            cycle=cycle,
            notes=[] if target.ended else notes(target, thread, self._limits, self._dispatcher.loop.time()),
        )
        return msgspec.structs.replace(explanation, text=paragraph(explanation))

    # ---- inside

    def _facts(self, process: Process) -> tuple[Thread | None, WaitFacts]:
        """The facts about `process`, and the thread that they are about; None if they are about the whole process."""
        if process.ended:
            task = None if self._tasks is None else self._tasks.unwritten_end(process.pid)
            return None, conditions.ended(process) if task is None else conditions.unwritten(process, task)
        if process.dying:
            return None, conditions.ending(process)
        if process.suspended:
            return None, conditions.suspended(process, None)
        thread = process.most_active_thread()
        if thread is None:
            return None, conditions.without_threads(process)
        return thread, self._thread_facts(thread)

    def _thread_facts(self, thread: Thread) -> WaitFacts:
        if thread.shown_state() == SUSPENDED:
            return conditions.suspended(thread.process, thread)
        if thread.state is not BLOCKED:
            return conditions.not_waiting(thread)
        facts = thread.waits_for.explain(thread)
        until = self._dispatcher.timers.until(thread)
        return msgspec.structs.replace(
            facts,
            seconds=thread.seconds_waiting if facts.seconds is None else facts.seconds,
            timeout=None if until is None else max(until - self._dispatcher.loop.time(), 0.0),
        )

    def _chain(self, process: Process, facts: WaitFacts) -> tuple[list[ChainMember], int]:
        """The processes behind the wait, up to `MAX_CHAIN`, and the one to which they lead back, or 0."""
        chain: list[ChainMember] = []
        seen = {process.pid}
        while facts.awaits and len(chain) < MAX_CHAIN:
            if facts.awaits in seen:
                return chain, facts.awaits
            following = self._table.alive.get(facts.awaits)
            if following is None:
                break
            seen.add(following.pid)
            _, facts = self._facts(following)
            chain.append(ChainMember(following.pid, following.program, facts.doing, facts.seconds))
        return chain, 0
