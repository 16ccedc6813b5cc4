"""Waits that anything may end: a message, the clock, a file. And `ThreadWait`, the protocol of all waits.

The code that parks a thread sets `Thread.waits_for` to a wait. The wait answers three questions: `str` says in a few
words what the thread waits for, `ended_by` which threads can end the wait, and `explain` everything that its subsystem
knows about it. Only `explain` may cost something: it is called when a user asks. A wait never carries a value.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any, Protocol

from ipc.syscalls import Participant, WaitFacts

MAX_LISTED = 5  # participants that a list in an explanation names


class ThreadWait(Protocol):
    """A wait that blocks a thread. `str` of the wait describes it in a few words."""

    @property
    def stage(self) -> str:
        """The stage of a model call: "queued", "loading" or "generating"; empty for any other wait."""

    def ended_by(self) -> Iterable[Any] | None:
        """The threads of which any one can end the wait; None if something else may end it, too."""

    def explain(self, thread: Any) -> WaitFacts:
        """The facts about the wait of `thread`. The explainer adds the duration and the timeout."""


class PlainWait:
    """A wait that is described by fixed texts: see `WaitFacts`. `text` is its `str`."""

    __slots__ = ("_facts", "_text")
    stage = ""

    def __init__(self, text: str, kind: str, doing: str, ends: str = "", timer: str = "it times out") -> None:
        self._text = text
        self._facts = WaitFacts(kind=kind, doing=doing, ends=ends, timer=timer)

    def __str__(self) -> str:
        return self._text

    def ended_by(self) -> None:
        """None: something other than a thread may end the wait."""

    def explain(self, thread: Any) -> WaitFacts:
        return self._facts


NO_WAIT = PlainWait("", "running", "running")  # of a thread that has not waited yet, or has ended
OUTSIDE = PlainWait("outside", "outside", "waiting for code outside the kernel", "the future that it awaits is done")
ANY_MESSAGE_WAIT = PlainWait("message", "message", "waiting for a message", "any process sends it a message")


def named(processes: Iterable[Any], note: str = "") -> list[Participant]:
    """The first `MAX_LISTED` of `processes`, each once."""
    return [Participant(one.pid, one.program, note) for one in islice(dict.fromkeys(processes), MAX_LISTED)]
