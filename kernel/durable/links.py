"""Links and monitors of durable processes: made again at a replay, with the same references.

Called by the replay. Links and monitors exist in memory only. The transaction that records the end of a monitored
process also writes the "down" message to a durable mailbox, so that the message is never delivered twice.
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
from kernel.durable.history import CallHistory, CallKey, history_of
from kernel.durable.pending_restarts import PendingRestarts
from kernel.durable.recorded_call import CallFingerprint, Outcome, RecordedValue
from kernel.supervision.links import Links


class DurableLinks:
    """Makes links and monitors, and makes them again at a replay."""

    def __init__(self, links: Links, commits: Commits, pending_restarts: PendingRestarts) -> None:
        self._links = links
        self._commits = commits
        self._pending_restarts = pending_restarts

    async def monitor(self, process: Process, call: Monitor, key: CallKey) -> int:
        ref = self._links.monitor(process, call, history_of(process).derived_number(key))
        self._commits.reserve_pid(call.pid)
        return ref

    async def link(self, process: Process, call: Link, key: CallKey) -> None:
        self._links.link(process, call)
        self._commits.reserve_pid(call.pid)

    # ---- after a call was answered from its record

    async def restore_monitor(self, process: Process, call: Monitor, ref: int) -> None:
        """Monitor again, unless the "down" message was delivered. If the other process is gone, deliver it now."""
        if not _down_delivered(process, ref):
            await self._after_restart(partial(self._links.monitor, process, call, ref))

    async def restore_link(self, process: Process, call: Link, answer: None) -> None:
        await self._after_restart(partial(self._links.link, process, call))

    async def restore_unlink(self, process: Process, call: Unlink, answer: None) -> None:
        self._links.unlink(process, call)

    async def _after_restart(self, make: Callable[[], Any]) -> None:
        """Call `make`. If the other process is yet to restart, wait, and repeat; ignore other errors (unknown pid)."""
        while True:
            try:
                make()
            except LlmosError as error:
                if await self._pending_restarts.wait_for_restart(error):
                    continue
            return


def _down_delivered(process: Process, ref: int) -> bool:
    """Whether the "down" message of monitor `ref` is in the mailbox, or was received by a call that has a record."""
    history = history_of(process)
    if not history.downs_collected:
        history.downs_collected = True
        history.downs_received.update(_recorded_downs(history))
    waiting = () if process.mailbox is None else process.mailbox.peek()
    return ref in history.downs_received or any(
        message.type == DOWN and message.correlation == ref for message in waiting
    )


def _recorded_downs(history: CallHistory) -> Iterator[int]:
    """The references of the "down" messages in the records of `Receive` that are still to be replayed."""
    for asked, outcome in history.records.values():
        with suppress(MalformedFrame):
            if decode(asked, CallFingerprint).kind == "Receive":
                recorded = decode(outcome, Outcome)
                if isinstance(recorded, RecordedValue):
                    message = decode(recorded.value, Message)
                    if message.type == DOWN:
                        yield message.correlation
