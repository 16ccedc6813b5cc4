"""A fair wait queue: what every primitive of this package stands on, in the spirit of trio's ParkingLot.

A thread that waits has a place; who comes first is served first. To grant a place hands over what is waited for at
once, before the thread looks, so that nobody can overtake it; a thread that cannot use a grant any more (cancelled, or
dead) passes it on. The queue knows nothing of what is granted, and keeps no thread that ended.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator

from ipc.errors import TimedOut
from kernel.core.fiber import PARK
from kernel.core.process import Thread, Wait
from kernel.core.timers import Timer
from kernel.core.waits import Uninterruptible
from kernel.dispatch import deadlock


class _Place:
    """A place in the queue. `granted`: what `thread` waits for is its own now, also if it has not looked yet."""

    __slots__ = ("granted", "thread")

    def __init__(self, thread: Thread) -> None:
        self.thread = thread
        self.granted = False


class WaitQueue:
    """Threads in the order in which they came."""

    __slots__ = ("_places",)

    def __init__(self) -> None:
        self._places: OrderedDict[_Place, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Thread]:
        """Those that wait, first come first."""
        return (place.thread for place in self._places if not place.thread.done())

    def grant(self) -> Thread | None:
        """Give the first thread what it waits for; that thread, or None if nobody waits."""
        while self._places:
            place, _ = self._places.popitem(last=False)
            # An abandoned thread never left its place.
            if not place.thread.done():
                place.granted = True
                place.thread.wake()
                return place.thread
        return None

    async def wait(
        self, thread: Thread, what: Wait | str, timeout: float | None, pass_on: Callable[[Thread], None]
    ) -> None:
        """Wait at the end of the queue until granted, at most `timeout` seconds.

        `pass_on` is called if the grant came and the thread cannot use it. Raises `TimedOut` and `DeadlockDetected`.
        """
        place = _Place(thread)
        timer = Timer(thread, timeout)
        self._places[place] = None
        try:
            while not place.granted:
                if timer.rung:
                    raise TimedOut(f"waited {timeout} s in vain for {what}", timeout=timeout)
                thread.waits_for = what
                deadlock.check(thread)
                await PARK
        except BaseException:
            self._places.pop(place, None)
            # What an abandoned thread had was taken from it when it was given up; its frames are closed later.
            if place.granted and not thread.done():
                pass_on(thread)
            raise
        finally:
            timer.cancel()

    async def wait_firmly(self, thread: Thread, what: Uninterruptible) -> asyncio.CancelledError | None:
        """Wait until granted, whatever comes. A cancellation that came meanwhile is returned: raise it when you can."""
        place = _Place(thread)
        self._places[place] = None
        cancelled = None
        try:
            while not place.granted:
                thread.waits_for = what
                deadlock.resolve(thread)
                try:
                    await PARK
                except asyncio.CancelledError as error:
                    cancelled = error
        finally:
            self._places.pop(place, None)
        return cancelled
