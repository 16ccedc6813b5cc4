"""Links and monitors of durable processes: made anew at a replay, with the references that they had.

Called by the replay. A link or monitor lives in the kernel alone; that somebody ended comes to a durable mailbox in the
transaction which keeps that end, so that it is told once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from ipc.codec import decode
from ipc.errors import LlmosError, MalformedFrame
from ipc.messages import Message
from ipc.syscalls import DOWN, Link, Monitor, Unlink
from kernel.core.process import Process
from kernel.durable.commits import Commits
from kernel.durable.history import CallHistory, Key, history_of
from kernel.durable.pending_restarts import PendingRestarts
from kernel.durable.recorded_call import CallFingerprint, Outcome, RecordedValue
from kernel.supervision.links import Links


class DurableLinks:
    """Monitor, link and unlink."""

    def __init__(self, links: Links, commits: Commits, arrivals: PendingRestarts) -> None:
        self._links = links
        self._commits = commits
        self._arrivals = arrivals

    async def monitor(self, process: Process, call: Monitor, key: Key) -> int:
        ref = self._links.monitor(process, call, history_of(process).number(key))
        self._commits.remember(call.pid)
        return ref

    async def link(self, process: Process, call: Link, key: Key) -> None:
        self._links.link(process, call)
        self._commits.remember(call.pid)

    # ---- of a call that was completed before

    async def monitored(self, process: Process, call: Monitor, ref: int) -> None:
        """Whoever is gone with the daemon is told of, unless that was told before."""
        if not _told(process, ref):
            await self._tie(partial(self._links.monitor, process, call, ref))

    async def linked(self, process: Process, call: Link, answer: None) -> None:
        await self._tie(partial(self._links.link, process, call))

    async def unlinked(self, process: Process, call: Unlink, answer: None) -> None:
        self._links.unlink(process, call)

    async def _tie(self, make: Callable[[], Any]) -> None:
        """Call `make`, once the other process has begun again; not if it ended, and well."""
        while True:
            try:
                make()
            except LlmosError as error:
                if await self._arrivals.resolve(error):
                    continue
            return


def _told(process: Process, ref: int) -> bool:
    """Whether the message of monitor `ref` has come: it waits, or was received by a call, replayed by now or not."""
    history = history_of(process)
    if not history.searched:
        history.searched = True
        history.heard.update(_received(history))
    waiting = () if process.mailbox is None else process.mailbox.peek()
    return ref in history.heard or any(message.type == DOWN and message.correlation == ref for message in waiting)


def _received(history: CallHistory) -> Iterator[int]:
    """The references of ends that calls have received which are still to replay."""
    for asked, outcome in history.records.values():
        with suppress(MalformedFrame):
            if decode(asked, CallFingerprint).kind == "Receive":
                kept = decode(outcome, Outcome)
                if isinstance(kept, RecordedValue):
                    message = decode(kept.value, Message)
                    if message.type == DOWN:
                        yield message.correlation
