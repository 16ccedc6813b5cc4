"""The kernel's end of a connection: its first frame is small, and nothing that it holds grows without a bound."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ipc.codec import decode, encode
from ipc.frames import HEADER, MAX_FRAME, frame
from ipc.protocol import VERSION, Abandon, Credit, Failure, FromDaemon, Hello, RawAnswer, Request, Welcome
from ipc.syscalls import Ping, Ps, Receive, Send
from kernel import connection as connections
from kernel.connection import Connection
from kernel.core import bounded_connection, traffic
from kernel.kernel import Kernel
from kernel.lib import descriptors
from tests.support.fake_transport import FakeTransport, payloads

HIGH_WATER = 64 * 1024  # unread bytes at which a real transport calls `pause_writing`


class Slow(FakeTransport):
    """The transport of a client that reads nothing until `read`."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    def write(self, data: Any) -> None:
        super().write(data)
        self.unread += len(data)
        if self.unread > HIGH_WATER:
            self._connection.pause_writing()

    def read(self) -> None:
        self.unread = 0
        self._connection.resume_writing()


def connect(kernel: Kernel, name: str = "someone") -> tuple[Connection, Slow]:
    connection = Connection(kernel, set())
    transport = Slow(connection)
    connection.connection_made(transport)
    say(connection, Hello(VERSION, name))
    return connection, transport


def say(connection: Connection, *messages: Any) -> None:
    connection.data_received(b"".join(frame(encode(message)) for message in messages))


def heard(connection: Connection, transport: FakeTransport) -> list[Any]:
    connection.flush()
    return [decode(payload, FromDaemon) for payload in payloads(transport)]


def codes(messages: list[Any]) -> dict[int, str]:
    return {message.id: message.error.code for message in messages if isinstance(message, Failure)}


async def test_the_first_frame_is_small_and_the_others_may_be_large(kernel: Kernel) -> None:
    connection, transport = Connection(kernel, set()), FakeTransport()
    connection.connection_made(transport)
    connection.data_received(HEADER.pack(connections.MAX_HELLO + 1))
    (failure,) = heard(connection, transport)
    assert failure.error.code == "FrameTooLarge"
    assert failure.error.data == {"length": connections.MAX_HELLO + 1, "limit": connections.MAX_HELLO}
    assert transport.closing
    connection.connection_lost(None)
    connection, transport = connect(kernel)
    connection.data_received(HEADER.pack(MAX_FRAME) + b"x")
    assert [type(message) for message in heard(connection, transport)] == [Welcome]
    connection.connection_lost(None)


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[31mred", "nul\0"])
async def test_a_name_that_cannot_be_printed_is_refused(kernel: Kernel, name: str) -> None:
    connection, transport = connect(kernel, name)
    (failure,) = heard(connection, transport)
    assert failure.error.code == "InvalidCall"
    assert "the name of a client" in failure.error.message
    connection.connection_lost(None)


async def test_requests_of_a_client_that_does_not_read_wait_and_do_not_pile_up_answers(kernel: Kernel) -> None:
    connection, transport = connect(kernel)
    body = "x" * 30_000
    asked = [Request(number, Ping(body)) for number in range(1, 1001)]
    say(connection, *asked)
    assert transport.unread < HIGH_WATER + 9_000_000  # not the 30 MB of all answers
    answered = len(payloads(transport))
    while len(payloads(transport)) < 1001:
        transport.read()
        assert len(payloads(transport)) > answered
        answered = len(payloads(transport))
    answers = [message.id for message in heard(connection, transport) if isinstance(message, RawAnswer)]
    assert answers == list(range(1, 1001))
    connection.connection_lost(None)


async def test_large_answers_are_made_one_at_a_time_for_a_client_that_does_not_read(kernel: Kernel) -> None:
    connection, transport = connect(kernel)
    say(connection, *(Request(number, Ping("x" * 70_000)) for number in range(1, 101)))
    assert len(payloads(transport)) == 2  # the welcome, and one answer
    connection.connection_lost(None)


async def test_a_request_too_large_beside_those_in_flight_is_busy_until_they_are_answered(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_connection, "MAX_IN_FLIGHT", 10_000)
    connection, transport = connect(kernel)
    say(connection, *(Request(number, Receive(type="x" * 2_000)) for number in range(1, 6)))
    say(connection, Request(6, Ping("small")), Request(7, Ping("x" * 2_000)))
    messages = heard(connection, transport)
    assert codes(messages) == {4: "Busy", 5: "Busy", 7: "Busy"}
    assert [message.id for message in messages if isinstance(message, RawAnswer)] == [6]
    assert kernel.traffic.in_flight > 6_000
    say(connection, Abandon(1), Abandon(2), Abandon(3))
    await asyncio.sleep(0.1)
    assert kernel.traffic.in_flight == 0
    say(connection, Request(8, Receive(type="x" * 2_000)))
    assert kernel.traffic.in_flight > 2_000
    connection.connection_lost(None)
    await asyncio.sleep(0.1)
    assert kernel.traffic.in_flight == 0


async def test_even_the_first_request_of_a_connection_counts_among_those_of_all(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traffic, "MAX_IN_FLIGHT", 6_500)
    for module in (traffic, connections):
        monkeypatch.setattr(module, "FAIR_SHARE", 1_000)
    clients = [connect(kernel) for _ in range(4)]
    answers = []
    for connection, transport in clients:
        say(connection, Request(1, Receive(type="x" * 2_000)))
        answers.append(codes(heard(connection, transport)))
    assert answers == [{}, {}, {1: "Busy"}, {1: "Busy"}]
    say(clients[3][0], Request(2, Ping("small")), Request(3, Receive(type="x" * 500)))
    assert codes(heard(*clients[3])) == {1: "Busy"}
    for connection, _ in clients:
        connection.connection_lost(None)
    await asyncio.sleep(0.1)
    assert kernel.traffic.in_flight == 0


async def test_an_incomplete_frame_ends_with_its_connection(kernel: Kernel) -> None:
    connection, transport = connect(kernel)
    connection.data_received(HEADER.pack(1_000_000) + bytes(1000))
    assert kernel.traffic.large == 1_000_004
    await asyncio.sleep(60)
    assert codes(heard(connection, transport)) == {0: "SlowWriter"}
    assert transport.closing
    assert kernel.traffic.large == 0
    connection.connection_lost(None)


async def test_a_client_beyond_the_descriptors_is_refused_and_the_reserve_stays(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 1)
    table: set[Connection] = set()
    first, second = Connection(kernel, table), Connection(kernel, table)
    transport = FakeTransport()
    first.connection_made(FakeTransport())
    second.connection_made(transport)
    (failure,) = heard(second, transport)
    assert failure.error.code == "Busy"
    assert "1 connections are open" in failure.error.message
    assert (transport.closing, table) == (True, {first})
    for connection in (first, second):
        connection.connection_lost(None)


def test_the_reserve_is_the_end_of_the_range_of_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    for soft, first in ((64, 43), (1024, 896), (1_000_000, 999_872)):
        monkeypatch.setattr(descriptors.resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert [descriptors.is_reserved(number) for number in (3, first - 1, first)] == [False, False, True]


async def test_an_answer_too_large_names_its_call(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_FRAME", 1000)
    connection, transport = connect(kernel)
    say(connection, Request(1, Ping("x" * 2000)))
    (failure,) = [message for message in heard(connection, transport) if isinstance(message, Failure)]
    assert failure.error.message.startswith("the answer to Ping has 2")
    connection.connection_lost(None)


async def test_floods_of_credit_and_abandon_change_nothing(kernel: Kernel) -> None:
    connection, transport = connect(kernel)
    say(connection, *(Credit(number, (1 << 63) - 1) for number in range(1, 2000)))
    say(connection, *(Abandon(number) for number in range(1, 2000)))
    process = connection._process
    assert process is not None
    say(connection, Request(1, Send(process.pid, "still here")))
    await asyncio.sleep(0)
    assert [type(message) for message in heard(connection, transport)] == [Welcome, RawAnswer]
    connection.connection_lost(None)


async def test_an_answer_of_many_processes_is_a_page(kernel: Kernel) -> None:
    connection, transport = connect(kernel)
    say(connection, Request(1, Ps(clients=True)))
    (answer,) = [message for message in heard(connection, transport) if isinstance(message, RawAnswer)]
    assert [row.program for row in decode(answer.value, Ps.returns)] == ["client", "someone"]
    connection.connection_lost(None)
