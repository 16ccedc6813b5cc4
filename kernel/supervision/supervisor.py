"""The supervisor: starts children in order, and starts those again that should not have ended.

One for each `Supervise` call, run by the calling thread. However it ends, by itself, by an error or by cancellation,
no child of its outlives it. It sees ends and not causes: whatever ends a child is treated alike.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from types import CoroutineType
from typing import Any

from ipc.errors import LlmosError, TooManyRestarts, to_wire
from ipc.syscalls import Child, ExitStatus, Spawn, Supervise
from kernel.core.fiber import PARK
from kernel.core.process import Process, Thread
from kernel.core.timers import Timer
from kernel.core.waits import EndOf
from kernel.supervision.restarts import RestartIntensity

Start = Callable[[Process, Spawn], "int | Coroutine[Any, Any, int]"]


class _Place:
    """One of the children: the process that runs now, if any, or how the last one ended."""

    __slots__ = ("child", "due", "over", "process", "status")

    def __init__(self, child: Child) -> None:
        self.child = child
        self.process: Process | None = None
        self.status: ExitStatus | None = None
        self.due: float | None = None  # the loop time of its next start
        self.over = False  # it is not started again


class Supervisor:
    """Runs the children of one call.

    `find` gives the process of a pid, `end` begins the end of one, `tell` notes a restart for people to read.
    """

    def __init__(
        self,
        thread: Thread,
        call: Supervise,
        restarts: RestartIntensity,
        start: Start,
        find: Callable[[int], Process],
        end: Callable[[Process, str, str], None],
        tell: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self._thread = thread
        self._loop = thread.get_loop()
        self._call = call
        self._restarts = restarts
        self._start_process = start
        self._find = find
        self._end = end
        self._tell = tell
        self._places = [_Place(child) for child in call.children]
        self._ended: deque[_Place] = deque()  # of children that ended by themselves, in that order

    async def run(self) -> list[ExitStatus]:
        """Until all have ended for good; how each did, in the order of the call."""
        try:
            for place in self._places:
                await self._start(place)
            while not all(place.over for place in self._places):
                if self._ended:
                    await self._child_ended(self._ended.popleft())
                else:
                    await self._start_those_due()
            return [place.status for place in self._places if place.status is not None]
        except LlmosError:
            await self._stop(self._places, "its supervisor gave up")
            raise
        finally:
            # If it was cancelled, there is no time to wait for them; the caller's process ends only after its children.
            for place in reversed(self._places):
                self._let_go(place, "its supervisor ended")

    async def _start(self, place: _Place) -> None:
        child, process = place.child, self._thread.process
        place.due = None
        call = Spawn(child.program, child.args, priority=child.priority, name=child.name)
        answer = self._start_process(process, call)
        pid = await answer if type(answer) is CoroutineType else answer
        assert isinstance(pid, int)
        place.process = self._find(pid)
        place.process.watch(lambda dead: self._noted(place, dead))

    def _noted(self, place: _Place, dead: Process) -> None:
        if place.process is dead:
            place.process, place.status = None, dead.status
            self._ended.append(place)
        self._thread.wake()

    async def _child_ended(self, place: _Place) -> None:
        status, kind = place.status, place.child.restart
        assert status is not None
        if kind == "temporary" or (kind == "transient" and status.reason == "done"):
            place.over = True
            return
        pause = self._restarts.another(self._loop.time())
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
        self._tell(
            f"{status.program} ended and is started again", {"pid": status.pid, "why": why, "pause": round(pause, 3)}
        )
        group = self._group(place)
        await self._stop([other for other in group if other is not place], f"its sibling {status.program} failed")
        for other in group:
            if other is not place and other.child.restart == "temporary":
                other.over = True
            if not other.over:
                other.due = self._loop.time() + pause

    def _group(self, place: _Place) -> list[_Place]:
        """Those that are started again when `place` is, in order. What is over stays over."""
        index = self._places.index(place)
        first = {"one_for_one": index, "one_for_all": 0, "rest_for_one": index}[self._call.strategy]
        last = index if self._call.strategy == "one_for_one" else len(self._places) - 1
        return [other for other in self._places[first : last + 1] if not other.over]

    async def _start_those_due(self) -> None:
        """Start what is due, or wait until something is or a child ends."""
        now = self._loop.time()
        for place in self._places:
            if place.due is not None and place.due <= now and not self._ended:
                try:
                    await self._start(place)
                except LlmosError as error:
                    # It counts as a start whose child failed at once: the bound on restarts ends it.
                    place.status = ExitStatus(0, place.child.program, "failed", None, to_wire(error))
                    self._ended.append(place)
        await self._wait(min((place.due for place in self._places if place.due is not None), default=None))

    async def _wait(self, until: float | None) -> None:
        """Until a child has ended by itself, or the time has come."""
        timer = Timer(self._thread, None if until is None else max(until - self._loop.time(), 0))
        try:
            while not self._ended and not timer.rung:
                self._thread.waits_for = "children"
                await PARK
        finally:
            timer.cancel()

    async def _stop(self, places: Iterable[_Place], why: str) -> None:
        """End the children in these places, the last first, each when the one after it is gone."""
        for place in reversed(list(places)):
            process = self._let_go(place, why)
            while process is not None and not process.ended:
                self._thread.waits_for = EndOf(process)
                await PARK
            if process is not None:
                place.status = process.status

    def _let_go(self, place: _Place, why: str) -> Process | None:
        """Begin the end of the child in `place`, which is no longer expected to run. That process."""
        process, place.process, place.due = place.process, None, None
        if place in self._ended:
            self._ended.remove(place)
        if process is not None:
            self._end(process, "killed", why)
        return process
