"""Whatever a request of a client raises, its answer is an error of that request, and the connection goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from ipc.codec import decode, encode
from ipc.frames import FrameDecoder, frame
from ipc.protocol import VERSION, Failure, FromDaemon, Hello, Request
from ipc.syscalls import GetStats, GetTime, Ping, Ps, Sleep, Syscall
from kernel.connection import Connection
from kernel.core.process import Process
from kernel.kernel import Kernel
from tests.support.hostile import ERRORS
from tests.support.system import System

SOME = [*sorted(ERRORS)[::5], "all traps", "args of a cancellation", "GeneratorExit", "SystemExit"]


class Wire(asyncio.Transport):
    """Collects what the daemon writes to one client."""

    def __init__(self) -> None:
        super().__init__()
        self.data = b""
        self.closed = False

    def write(self, data: Any) -> None:
        self.data += bytes(data)

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def answers(self) -> dict[int, Any]:
        """The answers so far, by the id of the request."""
        messages = [decode(payload, FromDaemon) for payload in FrameDecoder().feed(self.data)]
        return {message.id: message for message in messages if hasattr(message, "id")}


@pytest.fixture
async def client(kernel: Kernel) -> AsyncIterator[tuple[Connection, Wire]]:
    connection, wire = Connection(kernel, set()), Wire()
    connection.connection_made(wire)
    connection.data_received(frame(encode(Hello(VERSION, "someone"))))
    yield connection, wire
    connection.connection_lost(None)


def request(connection: Connection, *calls: tuple[int, Syscall]) -> None:
    connection.data_received(b"".join(frame(encode(Request(number, call))) for number, call in calls))


@pytest.mark.filterwarnings("ignore")  # of `__del__` that raises
async def test_any_error_of_a_handler_answers_its_request(client: tuple[Connection, Wire], system: System) -> None:
    connection, wire = client
    current: list[Callable[[], BaseException]] = []

    def fails_now(process: Process, call: Syscall) -> Any:
        raise current[0]()

    async def fails_later(process: Process, call: Syscall) -> Any:
        await asyncio.sleep(0)
        raise current[0]()

    system.kernel.gate.register({GetStats: fails_now, Sleep: fails_later})
    for number, name in enumerate(SOME):
        current[:] = [ERRORS[name]]
        request(connection, (3 * number + 1, GetStats()), (3 * number + 2, Sleep(1)), (3 * number + 3, Ping(name)))
        await system.turns(5)
    connection.flush()
    answers = wire.answers()
    for number, name in enumerate(SOME):
        assert isinstance(answers[3 * number + 1], Failure), name
        assert isinstance(answers[3 * number + 2], Failure), name
        assert decode(answers[3 * number + 3].value) == [name]
    assert not wire.closed


async def test_an_answer_that_cannot_be_encoded_is_an_error_of_its_request(
    client: tuple[Connection, Wire], system: System
) -> None:
    connection, wire = client
    system.kernel.gate.register({GetTime: lambda process, call: object(), Ps: lambda process, call: ["half a \ud800"]})
    request(connection, (1, GetTime()), (2, Ps()), (3, Ping("next")))
    connection.flush()
    answers = wire.answers()
    assert [answers[number].error.code for number in (1, 2)] == ["NotEncodable", "NotEncodable"]
    assert decode(answers[3].value) == ["next"]
