"""The supervisor: starts children in order, and restarts those that should not have ended.

Each `Supervise` call has a supervisor of its own, run by the calling thread. A supervisor never leaves a child behind,
whether it returns, fails or is cancelled. It reacts alike to a crash and to a kill.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from types import CoroutineType
from typing import Any

from ipc.errors import LlmosError, TooManyRestarts, to_wire
from ipc.syscalls import Child, ExitStatus, Spawn, Supervise
from kernel.core.fiber import PARK
from kernel.core.plain_wait import PlainWait
from kernel.core.process import Process, Thread
from kernel.core.timers import Timer
from kernel.core.waits import EndOf
from kernel.supervision.restarts import RestartIntensity

CHILDREN = PlainWait(
    "children",
    "children",
    "waiting for its children, which it supervises",
    "a supervised child ends",
    "it restarts a child",
)

Start = Callable[[Process, Spawn], "int | Coroutine[Any, Any, int]"]


class _SupervisedChild:
    """One of the children: its current process, if any, and the exit status of its previous process."""

    __slots__ = ("due", "over", "process", "spec", "status")

    def __init__(self, spec: Child) -> None:
        self.spec = spec
        self.process: Process | None = None
        self.status: ExitStatus | None = None
        self.due: float | None = None  # the loop time of its next start
        self.over = False  # has ended for good: it is never restarted


class Supervisor:
    """Runs the children of one call.

    `start` spawns a process, `find` returns the process of a pid, `end` begins the end of a process, and `report`
    writes a restart to the logs.
    """

    def __init__(
        self,
        thread: Thread,
        call: Supervise,
        restarts: RestartIntensity,
        start: Start,
        find: Callable[[int], Process],
        end: Callable[[Process, str, str], None],
        report: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self._thread = thread
        self._loop = thread.get_loop()
        self._call = call
        self._restarts = restarts
        self._start_process = start
        self._find = find
        self._end = end
        self._report = report
        self._children = [_SupervisedChild(spec) for spec in call.children]
        self._ended: deque[_SupervisedChild] = deque()  # those that ended by themselves, in the order of their ends

    async def run(self) -> list[ExitStatus]:
        """Run until all children have ended for good. Returns their exit statuses, in the order of the call."""
        try:
            for child in self._children:
                await self._start(child)
            while not all(child.over for child in self._children):
                if self._ended:
                    await self._child_ended(self._ended.popleft())
                else:
                    await self._start_due()
            return [child.status for child in self._children if child.status is not None]
        except LlmosError:
            await self._stop(self._children, "its supervisor gave up")
            raise
        finally:
            # Do not wait for these ends, as the thread may be cancelled. The process cannot end before its children.
            for child in reversed(self._children):
                self._begin_stop(child, "its supervisor ended")

    async def _start(self, child: _SupervisedChild) -> None:
        spec, process = child.spec, self._thread.process
        child.due = None
        call = Spawn(spec.program, spec.args, priority=spec.priority, name=spec.name)
        answer = self._start_process(process, call)
        pid = await answer if type(answer) is CoroutineType else answer
        assert isinstance(pid, int)
        child.process = self._find(pid)
        child.process.watch(lambda dead: self._note_end(child, dead))

    def _note_end(self, child: _SupervisedChild, dead: Process) -> None:
        if child.process is dead:
            child.process, child.status, dead.awaited = None, dead.status, True
            self._ended.append(child)
        self._thread.wake()

    async def _child_ended(self, child: _SupervisedChild) -> None:
        status, kind = child.status, child.spec.restart
        assert status is not None
        if kind == "temporary" or (kind == "transient" and status.reason == "done"):
            child.over = True
            return
        pause = self._restarts.next_pause(self._loop.time())
        if pause is None:
            call = self._call
            raise TooManyRestarts(
                f"{status.program} ended again ({status.reason}), after {call.max_restarts} restarts within "
                f"{call.within:g} s; the supervised processes have been ended",
                program=status.program,
                max_restarts=call.max_restarts,
                within=call.within,
                error=None if status.error is None else status.error.message,
            )
        why = status.reason if status.error is None else f"{status.reason}: {status.error.message}"
        fields = {"pid": status.pid, "why": why, "pause": round(pause, 3)}
        self._report(f"{status.program} ended and is restarted", fields)
        group = self._restart_group(child)
        await self._stop([other for other in group if other is not child], f"its sibling {status.program} failed")
        for other in group:
            if other is not child and other.spec.restart == "temporary":
                other.over = True
            else:
                other.over = False
                other.due = self._loop.time() + pause

    def _restart_group(self, child: _SupervisedChild) -> list[_SupervisedChild]:
        """The children that restart together with `child`, in order, as in OTP: also transient ones that are done."""
        index = self._children.index(child)
        first = {"one_for_one": index, "one_for_all": 0, "rest_for_one": index}[self._call.strategy]
        last = index if self._call.strategy == "one_for_one" else len(self._children) - 1
        group = self._children[first : last + 1]
        return [other for other in group if not other.over or other.spec.restart == "transient"]

    async def _start_due(self) -> None:
        """Start the children that are due, then wait until another is due or a child ends."""
        now = self._loop.time()
        for child in self._children:
            if child.due is not None and child.due <= now and not self._ended:
                try:
                    await self._start(child)
                except LlmosError as error:
                    # Count it as a failure right after the start, so that the bound on restarts ends the retries.
                    child.status = ExitStatus(0, child.spec.program, "failed", None, to_wire(error))
                    self._ended.append(child)
        await self._wait(min((child.due for child in self._children if child.due is not None), default=None))

    async def _wait(self, until: float | None) -> None:
        """Wait until a child has ended by itself, or until the loop time `until`."""
        timer = Timer(self._thread, None if until is None else max(until - self._loop.time(), 0))
        try:
            while not self._ended and not timer.expired:
                self._thread.waits_for = CHILDREN
                await PARK
        finally:
            timer.cancel()

    async def _stop(self, children: Iterable[_SupervisedChild], why: str) -> None:
        """End `children` in reverse order, each after the previous one has ended."""
        for child in reversed(list(children)):
            process = self._begin_stop(child, why)
            while process is not None and not process.ended:
                self._thread.waits_for = EndOf(process)
                await PARK
            if process is not None:
                child.status = process.status

    def _begin_stop(self, child: _SupervisedChild, why: str) -> Process | None:
        """Begin to end the process of `child`, if it has one, such that no restart follows. Returns the process."""
        process, child.process, child.due = child.process, None, None
        if child in self._ended:
            self._ended.remove(child)
        if process is not None:
            process.awaited = True  # the supervisor takes its status, and restarts may go on for months
            self._end(process, "killed", why)
        return process
