"""A client that was stopped for longer than the bound of its calls reads the answers first that arrived meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ipc.codec import encode
from ipc.errors import NoDaemon
from ipc.protocol import Answer, Welcome
from ipc.syscalls import Ping, Pong
from llmosd.client import asynchronous, bounds
from llmosd.client.asynchronous import _ClientConnection
from tests.support.fake_transport import FakeTransport


async def test_a_client_that_was_stopped_still_takes_its_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = _ClientConnection(Path("somewhere"))
    wire.connection_made(FakeTransport())
    wire.frame_received(encode(Welcome(1, 1, 1)))
    pings = [wire.open(Ping()) for _ in range(2)]
    calls = [asyncio.create_task(wire.answer(ping, bounds.answering(Ping(), wire.path))) for ping in pings]
    await asyncio.sleep(0)
    clock = asynchronous.time.monotonic
    monkeypatch.setattr(asynchronous.time, "monotonic", lambda: clock() + 60)
    wire._end_late_requests()  # the loop calls it before it reads
    await asyncio.sleep(0)
    wire.frame_received(encode(Answer(pings[0].number, Pong("late"))))
    assert (await calls[0]).payload == "late"
    with pytest.raises(NoDaemon):
        await calls[1]
    wire.connection_lost(None)
