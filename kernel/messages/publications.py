"""Publications that are too long for one turn of the loop: many patterns to search, or many subscribers to serve.

`Publisher` adds them. They are delivered one after another in slices, so that the messages of one publisher stay in
their order. The queue does the work itself, so a publication reaches all subscribers even if its publisher gives up or
ends. It never drops one.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

import structlog

from ipc.errors import Busy
from ipc.syscalls import Publish
from kernel.core.body_memory import BodyMemory
from kernel.core.fiber import PARK
from kernel.core.plain_wait import PlainWait
from kernel.core.process import Process, Thread
from kernel.messages.body_size import counted_size
from kernel.messages.topics import Search

if TYPE_CHECKING:
    from kernel.core.storage_receipt import StorageReceipt

DELIVERIES = 64  # to so many subscribers, a message is delivered at once
SLICE = 0.002  # seconds of a turn of the loop
MOST = 1000  # publications in the queue

PUBLISHING = PlainWait(
    "delivery", "delivery", "waiting for the delivery of a publication to many subscribers", "all of them have it"
)

log = structlog.get_logger("kernel.messages")


class Publication:
    """A publication in the queue. `delivered` counts the subscribers that got it, and `receipt` is of the last of them.

    `thread` waits for its end. `done` is set at the end, and `error` if the delivery failed.
    """

    __slots__ = ("call", "delivered", "done", "error", "process", "receipt", "rest", "search", "size", "thread")

    def __init__(self, process: Process, call: Publish, search: Search) -> None:
        self.process = process
        self.call = call
        self.search = search
        self.size = counted_size(call.body)
        self.rest: list[Process] | None = None  # the subscribers that are yet to get it, once the search is over
        self.delivered = 0
        self.receipt: StorageReceipt | None = None
        self.thread: Thread | None = None
        self.error: Exception | None = None
        self.done = False


class PublicationQueue:
    """Delivers publications in the order in which they were added. `deliver` gives one subscriber its copy."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, memory: BodyMemory, deliver: Callable[[Publication, Process], None]
    ) -> None:
        self._loop = loop
        self._memory = memory
        self._deliver = deliver
        self._queue: deque[Publication] = deque()
        self._publishers: Counter[Process] = Counter()

    def has(self, process: Process) -> bool:
        """Whether a publication of `process` is in the queue. A further one must not overtake it."""
        return process in self._publishers

    def add(self, process: Process, call: Publish, search: Search) -> Coroutine[Any, Any, int]:
        """Add a publication; return a coroutine that waits for its end. Raises `Busy`."""
        if len(self._queue) >= MOST:
            raise Busy(f"{MOST} publications are being delivered, which is the limit; try later", retry_after=1.0)
        publication = Publication(process, call, search)
        self._memory.take(publication.size)
        if not self._queue:
            self._loop.call_soon(self._run)
        self._queue.append(publication)
        self._publishers[process] += 1
        return _until_done(publication)

    def _run(self) -> None:
        """Deliver for one slice, and at least a small part."""
        until = perf_counter() + SLICE
        while self._queue:
            publication = self._queue[0]
            try:
                if self._advance(publication):
                    self._end(publication, None)
            except Exception as error:  # the publisher gets it
                log.error("a publication failed inside the kernel", exc_info=error)
                self._end(publication, error)
            if perf_counter() >= until:
                break
        if self._queue:
            self._loop.call_soon(self._run)

    def _advance(self, publication: Publication) -> bool:
        """Do a small part of the work. Returns whether the publication has been delivered."""
        rest = publication.rest
        if rest is None:
            if publication.search.advance():
                publication.rest = list(publication.search.found)
                publication.rest.reverse()
            return False
        for _ in range(min(DELIVERIES, len(rest))):
            self._deliver(publication, rest.pop())
        return not rest

    def _end(self, publication: Publication, error: Exception | None) -> None:
        self._queue.popleft()
        self._memory.used -= publication.size
        self._publishers[publication.process] -= 1
        if not self._publishers[publication.process]:
            del self._publishers[publication.process]
        publication.done, publication.error = True, error
        if publication.thread is not None:
            publication.thread.wake()


async def _until_done(publication: Publication) -> int:
    publication.thread = thread = cast("Thread", asyncio.current_task())
    while not publication.done:
        thread.waits_for = PUBLISHING
        await PARK
    if publication.error is not None:
        raise publication.error
    receipt = publication.receipt
    return publication.delivered if receipt is None else await receipt.answer_after_commit(publication.delivered)
