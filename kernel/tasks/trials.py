"""Trials: after two deaths of the daemon in a row, the tasks that may have caused them restart in groups.

The recovery asks it which tasks restart at once, and gets the others when the earlier ones have run for long enough.
`kernel.journal.suspects` chooses the groups. It never starts a task itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

import structlog

from ipc.errors import LlmosError
from ipc.messages import State
from kernel.journal.changes import Change, DaemonHealthy, TaskBegan, TaskCleared, TrialBegan
from kernel.journal.histories import RecoveredState
from kernel.journal.journal import Journal
from kernel.journal.records import AcceptedTask
from kernel.journal.suspects import LONGEST, SHARED

HEALTHY_AFTER = 600.0  # seconds of a run after which its crash does not count together with earlier ones

HELD_BACK = "held back"  # the state of these tasks

log = structlog.get_logger("kernel.tasks")


class Trials:
    """The tasks that are held back, by group, and the tasks on trial.

    `restart` starts the tasks of a group. While a task runs `alone`, `quiet` makes new tasks wait, so that a crash has
    one possible cause; but for `LONGEST` seconds at most, even if the trial takes longer.
    """

    def __init__(self, journal: Journal, restart: Callable[[list[AcceptedTask]], None]) -> None:
        self._journal = journal
        self._restart = restart
        self._loop = asyncio.get_running_loop()
        self._crashes = 0
        self._seconds = 0.0
        self._groups: dict[int, list[AcceptedTask]] = {}
        self._held: dict[int, AcceptedTask] = {}
        self._on_trial: set[int] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._alone_ends: asyncio.TimerHandle | None = None
        self._healthy: asyncio.TimerHandle | None = None
        self._changed = asyncio.Event()  # set, and replaced, when a group restarts or a trial is over
        self._logged = False
        self.alone = False

    # ---- for the recovery

    def opened(self, state: RecoveredState) -> None:
        """The journal was read: begin the trial of the tasks that restart at once."""
        self._crashes, self._seconds, self.alone = state.crashes, state.trial_seconds, state.alone
        if state.crashes:
            self._healthy = self._loop.call_later(HEALTHY_AFTER, self._persist, DaemonHealthy())

    def hold_back(self, portion: list[AcceptedTask]) -> list[AcceptedTask]:
        """Take the tasks that must wait. Returns those that restart at once."""
        at_once = []
        for accepted in portion:
            if accepted.group:
                self._groups.setdefault(accepted.group, []).append(accepted)
                self._held[accepted.id] = accepted
            else:
                at_once.append(accepted)
        if self._crashes >= SHARED:
            self._on_trial.update(accepted.id for accepted in at_once)
        return at_once

    def restarted(self, tasks: int) -> None:
        """All tasks on trial have restarted, `tasks` of them just now: their time begins.

        If there were none, a trial that has begun goes on: a program that cannot be read must not prolong it for ever.
        """
        if not self._on_trial and not self._held and not self.alone:
            return
        if not tasks and self._timer is not None:
            return
        if self._held and not self._logged:
            self._logged = True
            log.warning(
                "the daemon died several times in a row; the tasks that may have caused it restart in groups",
                crashes=self._crashes,
                tasks=len(self._on_trial),
                held_back=len(self._held),
                seconds=round(self._seconds, 1),
            )
        self._set_timer(self._seconds if self._on_trial else 0.0)
        if self.alone and self._alone_ends is None:
            self._alone_ends = self._loop.call_later(LONGEST, self._run_beside)

    def ended(self, task: int) -> None:
        """Task `task` has ended, and its end is on disk."""
        self._on_trial.discard(task)
        if not self._on_trial and self._timer is not None:
            self._set_timer(0.0)

    def set_aside(self, task: int) -> None:
        """Task `task` cannot restart yet, so it is not on trial."""
        self.ended(task)

    def discard(self, task: int) -> None:
        """Task `task`, which may be held back, has been killed."""
        if self._held.pop(task, None) is None:
            return
        for number, group in list(self._groups.items()):
            self._groups[number] = [accepted for accepted in group if accepted.id != task]
            if not self._groups[number]:
                del self._groups[number]
        self._notify()

    def stop(self) -> None:
        """Restart no more tasks: the daemon stops, and its next run restarts all of them."""
        for timer in (self._timer, self._alone_ends, self._healthy):
            if timer is not None:
                timer.cancel()
        self._groups.clear()
        self._run_beside()

    # ---- for callers that wait

    def holds(self, task: int) -> bool:
        """Whether `task` is held back."""
        return task in self._held

    @property
    def held(self) -> Mapping[int, AcceptedTask]:
        """The tasks that are held back, by number."""
        return self._held

    def state(self, task: int) -> State | None:
        """The event for a client of `task`; None if it is not held back."""
        accepted = self._held.get(task)
        return None if accepted is None else State(accepted.pid, HELD_BACK, self.reason)

    @property
    def reason(self) -> str:
        """Why tasks are held back."""
        return f"the daemon died {self._crashes} times in a row, so suspects restart in groups"

    def state_of_new(self) -> State:
        """The event for a client of a new task that waits for `quiet`."""
        why = f"the daemon died {self._crashes} times in a row, so a suspect runs alone for up to {LONGEST:g} s"
        return State(0, HELD_BACK, why)

    async def quiet(self) -> None:
        """Return when no task must run alone, or when the daemon stops."""
        while self.alone:
            await self._changed.wait()

    async def released(self, task: int) -> None:
        """Return when `task` is not held back any more."""
        while task in self._held:
            await self._changed.wait()

    # ---- inside

    def _set_timer(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self._passed)

    def _passed(self) -> None:
        """The trial is over, and the daemon lives: clear the tasks on trial, and restart the next group."""
        self._timer = None
        self._persist(*map(TaskCleared, self._on_trial))
        self._on_trial = set()
        self._run_beside()
        if self._groups:
            following = self._groups.pop(min(self._groups))
            # A task begins once that is on disk: if it makes the daemon die, the next run must know that it began.
            began = [TrialBegan(time.time()), *(TaskBegan(accepted.id) for accepted in following)]
            self._journal.persist(began, lambda error: self._begin(following, error))
        elif self._crashes >= SHARED:
            log.info("the daemon survived the restart of all tasks")

    def _begin(self, group: list[AcceptedTask], error: LlmosError | None) -> None:
        if error is not None:
            return  # the journal tries again
        group = [accepted for accepted in group if accepted.id in self._held]  # without those that were killed
        for accepted in group:
            accepted.attempt += 1
            del self._held[accepted.id]
        self._on_trial = {accepted.id for accepted in group}
        log.info("tasks that were held back restart", tasks=len(group), held_back=len(self._held))
        self._restart(group)
        self._notify()

    def _run_beside(self) -> None:
        """Let new tasks run beside the task on trial."""
        self.alone = False
        self._notify()

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _persist(self, *changes: Change) -> None:
        if changes:
            self._journal.persist(changes, lambda error: None)
