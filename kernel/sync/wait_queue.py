"""A fair wait queue: the basis of every primitive of this room, in the spirit of trio's ParkingLot.

Each waiting thread has a place, first in, first out. A grant gives the resource to a thread before the thread runs
again, so that no other thread can overtake it. A thread that was cancelled after its grant passes the grant on. The
queue never knows the resource that it grants, and never grants to a thread that has ended.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from itertools import islice

from ipc.errors import TimedOut
from ipc.syscalls import Participant, WaitFacts
from kernel.core.fiber import PARK
from kernel.core.plain_wait import MAX_LISTED, ThreadWait, named
from kernel.core.process import MAIN, Thread
from kernel.core.timers import Timer
from kernel.core.waits import Uninterruptible
from kernel.dispatch import deadlock
from kernel.lib.wording import quoted


class _Place:
    """A place in the queue. `granted`: `thread` has the resource, although it may not have run since the grant."""

    __slots__ = ("granted", "thread")

    def __init__(self, thread: Thread) -> None:
        self.thread = thread
        self.granted = False


class WaitQueue:
    """Waiting threads in the order of arrival."""

    __slots__ = ("_places",)

    def __init__(self) -> None:
        self._places: OrderedDict[_Place, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Thread]:
        """The waiting threads in the order of arrival."""
        return (place.thread for place in self._places if not place.thread.done())

    def facts(
        self, thread: Thread, kind: str, name: str, ends: str, *, state: str = "", holders: Collection[Thread] = ()
    ) -> WaitFacts:
        """The facts about the wait of `thread`: its place, and the threads that hold what the queue grants."""
        line = list(self)
        place = line.index(thread) if thread in line else 0
        return WaitFacts(
            kind=kind,
            doing=f"waiting for {kind} {quoted(name)}",
            place=place + 1,
            line=max(len(line), 1),
            ahead=named(other.process for other in line[:place]),
            ahead_count=place,
            held=f"The {kind} is held by" if holders else "",
            holders=[
                Participant(
                    holder.process.pid, holder.process.program, "" if holder.path == MAIN else f"thread {holder.path}"
                )
                for holder in islice(holders, MAX_LISTED)
            ],
            holder_count=len(holders),
            state=state,
            ends=ends,
            awaits=next((holder.process.pid for holder in holders), 0),
        )

    def grant(self) -> Thread | None:
        """Grant the resource to the first waiting thread and return that thread, or None if no thread waits."""
        while self._places:
            place, _ = self._places.popitem(last=False)
            # The place of an abandoned thread stays in the queue until here.
            if not place.thread.done():
                place.granted = True
                place.thread.wake()
                return place.thread
        return None

    async def wait(
        self, thread: Thread, wait: ThreadWait, timeout: float | None, pass_on: Callable[[Thread], None]
    ) -> None:
        """Wait at the end of the queue until granted, at most `timeout` seconds.

        `wait` becomes `thread.waits_for`. `pass_on` is called with the thread if it has a grant that it cannot use,
        because the wait ends with an error. Raises `TimedOut` and `DeadlockDetected`.
        """
        place = _Place(thread)
        timer = Timer(thread, timeout)
        self._places[place] = None
        try:
            while not place.granted:
                if timer.expired:
                    raise TimedOut(f"timed out after {timeout} s of waiting for {wait}", timeout=timeout)
                thread.waits_for = wait
                deadlock.check(thread)
                await PARK
        except BaseException:
            self._places.pop(place, None)
            # From a thread that is abandoned, `Synchronisation.thread_ended` takes all resources.
            if place.granted and not thread.done():
                pass_on(thread)
            raise
        finally:
            timer.cancel()

    async def wait_uninterruptibly(self, thread: Thread, wait: Uninterruptible) -> asyncio.CancelledError | None:
        """Wait until granted, even if cancelled. Returns the last cancellation, which the caller must raise later."""
        place = _Place(thread)
        self._places[place] = None
        cancelled = None
        try:
            while not place.granted:
                thread.waits_for = wait
                deadlock.resolve(thread)
                try:
                    await PARK
                except asyncio.CancelledError as error:
                    cancelled = error
        finally:
            self._places.pop(place, None)
        return cancelled
