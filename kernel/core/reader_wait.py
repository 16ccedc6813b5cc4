"""The wait for a lagging reader: a client that does not read the events of its task.

`emit` waits while the stream of the process is congested, and so does a generation that streams its tokens. It never
reads from the stream.
"""

from __future__ import annotations

from typing import Any

from ipc.syscalls import Participant, WaitFacts
from kernel.core.event_log import EventLog
from kernel.core.plain_wait import MAX_LISTED
from kernel.core.stream import Stream
from kernel.lib.wording import counted, listed, verb


class ReaderWait:
    """The wait of a thread until `stream` is no longer congested."""

    __slots__ = ("_stream",)
    stage = ""

    def __init__(self, stream: Stream | EventLog) -> None:
        self._stream = stream

    def __str__(self) -> str:
        return "reader of the task"

    def ended_by(self) -> None:
        """None: a client ends the wait, or its connection."""

    def explain(self, thread: Any) -> WaitFacts:
        return reader_facts(self._stream, "waiting for the reader of its task")


def reader_facts(stream: Stream | EventLog, doing: str) -> WaitFacts:
    """The facts about a wait for the clients that are behind in reading `stream`."""
    lagging = [one for one in stream.readers if one.congested]
    pids = [one.reader for one in lagging if one.reader]
    unread = listed([_unread(one) for one in lagging])
    return WaitFacts(
        kind="reader",
        doing=doing,
        held=verb(len(pids), "The client that does not read is", "The clients that do not read are") if pids else "",
        holders=[Participant(pid, "client") for pid in pids[:MAX_LISTED]],
        holder_count=len(pids),
        state=f"{unread} wait to be read, which is the most that may wait" if lagging else "",
        ends="the client reads on or disconnects",
    )


def _unread(stream: Stream) -> str:
    text = f" with {counted(stream.unread_text, 'character')} of tokens" if stream.unread_text else ""
    return counted(stream.unread, "event") + text
