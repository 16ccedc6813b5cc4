"""The client side of a connection, without a connection: requests, answers, events, credit."""

from __future__ import annotations

from typing import Any

import pytest

import llmosd.client.session
from ipc.codec import decode, encode
from ipc.errors import ConnectionLost, FrameTooLarge, LlmosError, UnknownProcess, to_wire
from ipc.messages import Emitted, Result
from ipc.protocol import Abandon, Answer, Credit, End, Failure, Request, StreamEvent, ToDaemon
from ipc.syscalls import Logs, Nice, Ping
from llmosd.client.session import CREDIT, PendingRequest, Session, received

GONE = ConnectionLost("gone")


@pytest.fixture
def session() -> Session[PendingRequest]:
    return Session(PendingRequest)


def take(session: Session[PendingRequest], message: Any) -> PendingRequest | None:
    """Handle `message` as if it had arrived over a socket."""
    return session.take(received(encode(message)))


def following(session: Session[PendingRequest]) -> PendingRequest:
    """A request that is answered and whose events have yet to arrive."""
    pending, _ = session.open(Logs(1, CREDIT), streams=True)
    take(session, Answer(pending.number, []))
    return pending


def test_answers_are_filed_by_id_in_whatever_order_they_come(session):
    first, sent = session.open(Nice(7, 3))
    second, _ = session.open(Nice(7, 4))
    assert decode(sent, ToDaemon) == Request(1, Nice(7, 3))
    assert take(session, Answer(2, 4)) is second
    assert second.answered
    assert not first.answered
    assert take(session, Answer(1, 3)) is first
    assert (first.answer(), second.answer()) == (3, 4)


def test_a_call_that_cannot_be_encoded_takes_no_id(session):
    with pytest.raises(LlmosError):
        session.open(Ping(object()))
    assert session.open(Ping())[0].number == 1


def test_a_call_that_no_frame_can_hold_is_not_sent_and_takes_no_id(session, monkeypatch):
    """The daemon would disconnect a client that sent it, and end all attached tasks of that client."""
    monkeypatch.setattr(llmosd.client.session, "MAX_FRAME", 1000)
    with pytest.raises(FrameTooLarge, match="a Ping"):
        session.open(Ping("x" * 1000))
    assert session.open(Ping("x" * 900))[0].number == 1


def test_the_error_of_a_call_is_raised_where_its_answer_is_read(session):
    pending, _ = session.open(Nice(7, 3))
    take(session, Failure(1, to_wire(UnknownProcess("no process 7", pid=7))))
    with pytest.raises(UnknownProcess, match="no process 7"):
        pending.answer()


def test_events_are_read_in_order_and_over_after_the_last(session):
    pending = following(session)
    assert pending.next() is None
    for event in (Emitted(1, "a"), Result(1, "b")):
        take(session, StreamEvent(1, event))
    assert not pending.exhausted
    assert [pending.next().event, pending.next().event] == [Emitted(1, "a"), Result(1, "b")]
    assert pending.exhausted


def test_an_end_that_came_before_the_connection_was_lost_stays_an_orderly_one(session):
    pending = following(session)
    take(session, StreamEvent(1, Emitted(1, "a")))
    take(session, End(1))
    assert session.lose(GONE) == []
    assert pending.next().event == Emitted(1, "a")
    assert pending.exhausted


def test_what_came_before_the_connection_was_lost_is_read_first(session):
    pending = following(session)
    take(session, StreamEvent(1, Emitted(1, "a")))
    assert session.lose(GONE) == [pending]
    assert pending.next().event == Emitted(1, "a")
    with pytest.raises(ConnectionLost, match="gone"):
        pending.next()


def test_credit_is_granted_anew_once_half_of_it_was_read(session):
    pending = following(session)
    for number in range(CREDIT // 2):
        take(session, StreamEvent(1, Emitted(1, number)))
        assert pending.take_credit() is None
        pending.next()
    assert decode(pending.take_credit(), ToDaemon) == Credit(1, CREDIT // 2)
    assert pending.take_credit() is None


def test_what_was_abandoned_is_told_once_and_brings_nothing_more(session):
    pending = following(session)
    assert decode(session.abandon(pending), ToDaemon) == Abandon(1)
    assert session.abandon(pending) is None
    assert take(session, StreamEvent(1, Emitted(1, "a"))) is None


def test_what_is_complete_needs_no_abandoning(session):
    pending, _ = session.open(Ping())
    take(session, Answer(1, ["pong"]))
    assert session.abandon(pending) is None


def test_the_refusal_of_a_whole_connection_is_raised(session):
    session.open(Ping())
    with pytest.raises(ConnectionLost, match="gone"):
        take(session, Failure(0, to_wire(GONE)))
