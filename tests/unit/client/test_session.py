"""The client side of a connection without one: requests, answers, events, credit; and the calls of both clients."""

from __future__ import annotations

import asyncio
import inspect
import socket
from pathlib import Path
from typing import Any

import pytest

import llmosd.session
from ipc.codec import decode, encode
from ipc.errors import ConnectionLost, FrameTooLarge, LlmosError, NoDaemon, UnknownProcess, VersionMismatch, to_wire
from ipc.frames import HEADER, MAX_FRAME, frame
from ipc.messages import Emitted, Result
from ipc.protocol import Abandon, Answer, Credit, End, Failure, Request, StreamEvent, ToDaemon
from ipc.syscalls import Logs, Nice, Ping, Submitted
from llmosd import AsyncClient, Client, Task
from llmosd.async_client import AsyncTask
from llmosd.session import CREDIT, Pending, Session, received

GONE = ConnectionLost("gone")


@pytest.fixture
def session() -> Session[Pending]:
    return Session(Pending)


def take(session: Session[Pending], message: Any) -> Pending | None:
    """File `message` as if it had come over a socket."""
    return session.take(received(encode(message)))


def following(session: Session[Pending]) -> Pending:
    """A request whose answer has come and whose events are still to come."""
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
    """The daemon would cut off who sends it, and end all its attached tasks."""
    monkeypatch.setattr(llmosd.session, "MAX_FRAME", 1000)
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
    assert not pending.over
    assert [pending.next().event, pending.next().event] == [Emitted(1, "a"), Result(1, "b")]
    assert pending.over


def test_an_end_that_came_before_the_connection_was_lost_stays_an_orderly_one(session):
    pending = following(session)
    take(session, StreamEvent(1, Emitted(1, "a")))
    take(session, End(1))
    assert session.lose(GONE) == []
    assert pending.next().event == Emitted(1, "a")
    assert pending.over


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
        assert pending.credit() is None
        pending.next()
    assert decode(pending.credit(), ToDaemon) == Credit(1, CREDIT // 2)
    assert pending.credit() is None


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


def methods(kind: type) -> dict[str, Any]:
    return {name: value for name, value in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}


def test_both_clients_have_the_same_calls_with_the_same_parameters():
    blocking, asynchronous = methods(Client), methods(AsyncClient)
    assert set(blocking) - set(asynchronous) == {"wait_until_closed"}
    assert set(asynchronous) - set(blocking) == {"shared"}
    for name in (set(blocking) & set(asynchronous)) - {"request"}:
        assert inspect.signature(blocking[name]).parameters == inspect.signature(asynchronous[name]).parameters, name
        assert blocking[name].__doc__, name


def test_the_calls_of_the_asynchronous_client_are_coroutine_functions_and_those_of_the_blocking_one_are_not():
    for name in ("submit", "attach", "ps", "ping", "wait", "kill"):
        assert inspect.iscoroutinefunction(getattr(AsyncClient, name))
        assert inspect.iscoroutinefunction(getattr(AsyncClient("/x"), name))
        assert not inspect.iscoroutinefunction(getattr(Client, name))


@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_a_task_is_cancelled_only_by_the_connection_that_found_it_and_while_it_has_a_process(kind: type) -> None:
    """In another life of the daemon its pid may be that of anybody."""
    client, killed = kind("/x"), []

    async def kill(pid: int) -> None:
        killed.append(pid)

    client.kill = kill if kind is AsyncClient else killed.append

    async def cancelled(submitted: Submitted, lost: bool = False) -> None:
        pending = Pending(1, Ping(), streams=True)
        if lost:
            pending.lose(GONE)
        task = AsyncTask(client, None, pending, submitted) if kind is AsyncClient else Task(client, pending, submitted)
        if (done := task.cancel()) is not None:
            await done

    await cancelled(Submitted("a", 0))
    assert killed == []
    await cancelled(Submitted("a", 7))
    assert killed == [7]
    with pytest.raises(ConnectionLost):
        await cancelled(Submitted("a", 8), lost=True)
    assert killed == [7]


# ---- a daemon that breaks the frames


def test_a_client_that_lost_the_border_of_the_frames_reads_no_more():
    client, (ours, theirs) = Client("/x"), socket.socketpair()
    client._connection = ours
    theirs.sendall(HEADER.pack(MAX_FRAME + 1) + frame(encode(Answer(2, ["pong"]))))
    with pytest.raises(FrameTooLarge):
        client.ping()
    with pytest.raises(ConnectionLost, match="not connected"):
        client.ping()
    theirs.close()


# ---- a daemon that does not welcome


@pytest.mark.real_time
@pytest.mark.parametrize("refused", [True, False])
async def test_a_connection_that_is_not_welcomed_is_closed(
    refused: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused, or not answered in time: nothing is left open that the daemon would hold for us."""
    ended: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if refused:
            writer.write(frame(encode(Failure(0, to_wire(VersionMismatch("another version"))))))
        await reader.readuntil(b"async client")
        ended.set_result(await reader.read())
        writer.close()

    monkeypatch.setattr(llmosd.session, "CONNECT_TIMEOUT", 30.0 if refused else 0.3)
    server = await asyncio.start_unix_server(serve, folder / "s.sock")
    with pytest.raises(VersionMismatch if refused else NoDaemon):
        await AsyncClient(folder / "s.sock").connect()
    async with asyncio.timeout(30):
        await ended
    server.close()
