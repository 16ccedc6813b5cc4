"""The event log of a task: a client that attaches again gets the events that it missed, or their number."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from ipc.messages import Emitted, Event, Missed, Result, Token
from kernel.core import event_log
from kernel.core.event_log import EventLog
from kernel.core.stream import Stream


class Reader:
    """A connection attached to a task: its events with their numbers."""

    def __init__(self, credit: int = 1_000_000) -> None:
        self.events: list[tuple[int, Event]] = []
        self.ended = False
        self.stream = Stream(self._deliver, credit, self._end)

    @property
    def seen(self) -> int:
        return self.events[-1][0] if self.events else 0

    def _deliver(self, event: Event) -> None:
        self.events.append((self.stream.number, event))

    def _end(self) -> None:
        self.ended = True


def test_who_comes_back_gets_what_it_missed_and_goes_on() -> None:
    first, task = Reader(), EventLog(None)
    task.add(first.stream)
    for number in range(1, 4):
        task.push(Emitted(1, number))
    first.stream.close()
    for number in range(4, 6):
        task.push(Emitted(1, number))
    again = Reader()
    task.add(again.stream, after=first.seen)
    task.push(Emitted(1, 6))
    task.finish(Result(1, "done"))
    assert first.events == [(number, Emitted(1, number)) for number in range(1, 4)]
    assert again.events == [*((number, Emitted(1, number)) for number in range(4, 7)), (7, Result(1, "done"))]
    assert again.ended


def test_without_after_events_come_from_then_on() -> None:
    reader, task = Reader(), EventLog(None)
    task.push(Emitted(1, 1))
    task.add(reader.stream)
    task.push(Emitted(1, 2))
    assert reader.events == [(2, Emitted(1, 2))]


def test_what_is_not_kept_any_more_is_said_with_its_count() -> None:
    task = EventLog(None)
    for number in range(1, event_log.RETAINED_EVENTS + 11):
        task.push(Emitted(1, number))
    late, partly, whole = Reader(), Reader(), Reader()
    task.add(late.stream, after=0)
    task.add(partly.stream, after=4)
    task.add(whole.stream, after=10)
    assert late.events[0] == (10, Missed(0, 10))
    assert late.events[1:] == whole.events
    assert partly.events[0] == (10, Missed(0, 6))
    assert whole.events[0] == (11, Emitted(1, 11))
    assert len(whole.events) == event_log.RETAINED_EVENTS


@pytest.mark.parametrize("event", [Token("x" * 1000, 1, 1), Emitted(1, "x" * 1000), Emitted(1, b"x" * 1000)])
def test_what_is_kept_is_bounded_by_its_size(event: Event) -> None:
    task = EventLog(None)
    for _ in range(event_log.RETAINED_EVENTS):
        task.push(event)
    assert task._retained is not None
    assert event_log.RETAINED_SIZE // 2 < len(task._retained) * 1000 <= event_log.RETAINED_SIZE
    huge = Emitted(1, "x" * event_log.RETAINED_SIZE)
    task.push(huge)
    assert (len(task._retained), task._size) == (0, 0)
    reader = Reader()
    task.add(reader.stream, after=event_log.RETAINED_EVENTS)
    assert reader.events == [(event_log.RETAINED_EVENTS + 1, Missed(0, 1))]


def test_a_task_that_says_nothing_keeps_nothing_and_one_that_ended_forgets_all() -> None:
    task = EventLog(None)
    assert task._retained is None
    task.push(Emitted(1, 1))
    assert task._retained is not None
    task.finish(Result(1, None))
    assert task._retained is None


STEPS = st.lists(
    st.one_of(
        st.integers(1, 3).map(lambda call: ("token", call)),
        st.just(("emit", 0)),
        st.integers(1, 5).map(lambda credit: ("grant", credit)),
        st.just(("break", 0)),
    ),
    max_size=80,
)


@hypothesis.given(STEPS)
def test_whenever_the_connection_breaks_each_token_is_seen_once_and_in_order(steps: list[tuple[str, int]]) -> None:
    task, reader = EventLog(None), Reader(credit=0)
    task.add(reader.stream)
    emitted: list[Any] = []
    read: list[Event] = []
    seen = 0

    def take() -> None:
        nonlocal seen
        read.extend(event for _, event in reader.events)
        seen = reader.seen or seen
        reader.events.clear()

    for count, (what, value) in enumerate(steps):
        if what == "token":
            event: Event = Token(f"{count} ", 1, value)
            emitted.append(event)
            task.push(event)
        elif what == "emit":
            emitted.append(Emitted(1, count))
            task.push(Emitted(1, count))
        elif what == "grant":
            reader.stream.grant(value)
        else:
            take()
            reader.stream.close()
            reader = Reader(credit=0)
            task.add(reader.stream, after=seen)
    reader.stream.grant(1_000_000)
    take()
    assert _apart(read) == _apart(emitted)


def _apart(events: list[Event]) -> list[Any]:
    """Events with joined tokens taken apart."""
    return [
        (event.pid, event.call, word) if isinstance(event, Token) else event
        for event in events
        for word in (event.text.split() if isinstance(event, Token) else [""])
    ]
