"""Tasks of a previous run that cannot restart yet: their program is broken, or does not take their arguments now.

The recovery hands them over with the reason, and gets each back when its program loads again. A task that waits has no
process, and neither an attempt nor a crash counts for it, except while its file still runs: that may be what makes the
daemon die. It never ends a task, except at its deadline: only the task itself or a user does.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import structlog

from ipc.errors import Busy, DeadlineExceeded, LlmosError
from ipc.foreign import bounded
from ipc.messages import State
from kernel.journal.changes import TaskBegan, TaskWaits
from kernel.journal.journal import Journal
from kernel.journal.records import AcceptedTask
from kernel.processes.exit import deadline_passed
from kernel.programs.origin import without_origin
from kernel.programs.program import Program
from kernel.programs.reasons import MAX_REASON, one_line
from kernel.programs.watch import ProgramWatch
from kernel.tasks.running import RunningTasks
from kernel.tasks.trials import Trials

BATCH = 100  # tasks that are checked in one turn of the loop
WAITING = "waiting"  # the state of these tasks

log = structlog.get_logger("kernel.tasks")

Load = Callable[[str], Coroutine[Any, Any, "Program | Exception"]]
Check = Callable[[AcceptedTask, Program], None]


class StillLoading(Busy):
    """The file of a program runs. After a minute the loader reports a plain `Busy`."""


class WaitingTask:
    """A task that waits because of `error`, since `since` by `time.monotonic`.

    `due`: its deadline in seconds since the epoch and the seconds that its client set; None without a deadline.
    `suspect`: a death of the daemon counts for it, because its file still runs, or did so at the last attempt.
    `begins`: it has left the wait, and begins when the journal has stored that.
    """

    __slots__ = ("accepted", "begins", "due", "error", "since", "suspect")

    def __init__(self, accepted: AcceptedTask, error: Exception, due: tuple[float, float] | None) -> None:
        self.accepted = accepted
        self.error = error
        self.due = due
        self.since = time.monotonic()
        self.suspect = True
        self.begins = False

    @property
    def reason(self) -> str:
        """Why it waits, in one line."""
        return one_line(self.error)


class WaitingTasks:
    """The tasks that wait, by number.

    `load` loads a program or returns the error, and `check` raises an error if a task cannot start with it. `restart`
    gets the tasks that can start.
    """

    def __init__(
        self,
        running: RunningTasks,
        journal: Journal,
        watch: ProgramWatch,
        trials: Trials,
        load: Load,
        check: Check,
        restart: Callable[[list[AcceptedTask]], None],
    ) -> None:
        self._running = running
        self._journal = journal
        self.watch = watch
        self._trials = trials
        self._load = load
        self._check = check
        self._restart = restart
        self._loop = asyncio.get_running_loop()
        self.tasks: dict[int, WaitingTask] = {}
        self._by_program: dict[str, dict[int, WaitingTask]] = {}
        self._attempt: asyncio.Task[None] | None = None
        self._again = False
        self._timer: asyncio.TimerHandle | None = None  # for the next deadline
        self._first_due = 0.0  # the time of that, in seconds since the epoch
        self._changed = asyncio.Event()  # set, and replaced, when a task leaves

    def add(self, tasks: list[WaitingTask]) -> None:
        """Let `tasks` wait. The journal notes that they have not begun, unless their files still run."""
        if not tasks:
            return
        for task in tasks:
            self.tasks[task.accepted.id] = task
            self._by_program.setdefault(task.accepted.program, {})[task.accepted.id] = task
        self._set_aside(tasks)
        for (why, program), count in Counter((task.reason, task.accepted.program) for task in tasks).items():
            log.warning("tasks wait for their program", program=bounded(program, MAX_REASON), tasks=count, why=why)
        self._set_timer(tasks)
        self.watch.add(self.retry, self._by_program)

    def remove(self, *numbers: int) -> None:
        """These tasks wait no more: they have ended, or restart."""
        found = [task for number in numbers if (task := self.tasks.pop(number, None)) is not None]
        for task in found:
            of_program = self._by_program[task.accepted.program]
            del of_program[task.accepted.id]
            if not of_program:
                del self._by_program[task.accepted.program]
        if not self.tasks:
            self.watch.remove(self.retry)
        if found:
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    def stop(self) -> None:
        """Restart no more tasks: the daemon stops, and its next run tries again."""
        self.watch.remove(self.retry)
        for running in (self._timer, self._attempt):
            if running is not None:
                running.cancel()

    def state(self, number: int) -> State | None:
        """The event for a client of task `number`; None if it does not wait."""
        task = self.tasks.get(number)
        return None if task is None else State(task.accepted.pid, WAITING, task.reason)

    async def released(self, number: int) -> None:
        """Return when task `number` does not wait any more."""
        while number in self.tasks:
            await self._changed.wait()

    def retry(self) -> None:
        """Try to load the programs of all tasks that wait; again if an attempt in progress may be too early."""
        self._again = self._attempt is not None
        if self._attempt is None and not self._running.stopping:
            self._attempt = asyncio.Task(self._try_all(), loop=self._loop, context=without_origin())

    # ---- inside

    async def _try_all(self) -> None:
        try:
            for name in list(self._by_program):
                program = await self._load(name)
                ready: list[WaitingTask] = []
                failed: list[WaitingTask] = []
                waiting = [one for one in self._by_program.get(name, {}).values() if not one.begins]
                for count, task in enumerate(waiting, 1):
                    if task.accepted.id in self.tasks:
                        (ready if self._fits(task, program) else failed).append(task)
                    if not count % BATCH:
                        await asyncio.sleep(0)
                self._set_aside(task for task in failed if task.accepted.id in self.tasks)
                if any(not task.suspect for task in ready):  # the others are on trial themselves
                    await self._trials.quiet()
                self._begin(ready)
        finally:
            self._attempt = None
        if self._again:
            self.retry()

    def _set_aside(self, tasks: Iterable[WaitingTask]) -> None:
        """Those of `tasks` whose files do not run any more count as not begun from now on."""
        aside = [task for task in tasks if task.suspect and not isinstance(task.error, StillLoading)]
        for task in aside:
            task.suspect = False
            task.accepted.attempt -= 1
            self._running.tasks[task.accepted.id].attempt = task.accepted.attempt
            self._trials.set_aside(task.accepted.id)
        if aside:
            self._journal.persist([TaskWaits(task.accepted.id) for task in aside], lambda error: None)

    def _fits(self, task: WaitingTask, program: Program | Exception) -> bool:
        if isinstance(program, Exception):  # not raised: the traceback would grow with each task
            task.error = program
            return False
        try:
            self._check(task.accepted, program)
        except Exception as error:
            task.error = error
            return False
        return True

    def _begin(self, tasks: list[WaitingTask]) -> None:
        """Restart `tasks` when the journal has stored that they begin: one of them may make the daemon die."""
        tasks = [task for task in tasks if task.accepted.id in self.tasks]
        if not tasks or self._running.stopping:
            return
        for task in tasks:
            task.begins = True
        self._journal.persist([TaskBegan(task.accepted.id) for task in tasks], lambda error: self._begun(tasks, error))

    def _begun(self, tasks: list[WaitingTask], error: LlmosError | None) -> None:
        if error is not None:
            return  # the journal tries again
        restarting = []
        for task in tasks:
            if task.accepted.id in self.tasks:  # nobody has killed it
                task.accepted.attempt += not task.suspect
                restarting.append(task.accepted)
        self._restart(restarting)
        self.remove(*(accepted.id for accepted in restarting))
        log.info("tasks that waited for their program restart", tasks=len(restarting))

    def _set_timer(self, tasks: Iterable[WaitingTask]) -> None:
        """Set the timer to the first deadline of `tasks`, unless it is set to an earlier one."""
        due = min((one.due[0] for one in tasks if one.due is not None and not one.begins), default=None)
        if due is None or self._running.stopping or (self._timer is not None and self._first_due <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._first_due = due
        self._timer = self._loop.call_later(max(due - time.time(), 0.0), self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = time.time()
        due = [task for task in self.tasks.values() if task.due is not None and task.due[0] <= now and not task.begins]
        self.remove(*(task.accepted.id for task in due))
        for task in due:
            assert task.due is not None
            running = self._running.tasks[task.accepted.id]
            self._running.fail(running, "deadline", DeadlineExceeded(deadline_passed(task.due[1])))
        self._set_timer(self.tasks.values())
