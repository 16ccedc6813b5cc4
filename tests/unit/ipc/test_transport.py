"""Framed connections: writes are joined, buffers bounded, and a peer that breaks or does not read is cut off."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from ipc.codec import decode, encode
from ipc.errors import FrameTooLarge, LlmosError, SlowReader
from ipc.frames import HEADER, frame
from ipc.messages import Log
from ipc.protocol import VERSION, Failure, FromDaemon, Hello, RawAnswer, Request, StreamEvent
from ipc.syscalls import Logs, Ping
from ipc.transport import LINGER, FramedProtocol
from kernel import connection as kernel_server
from kernel.connection import Connection
from kernel.kernel import Kernel
from tests.support.fake_transport import FakeTransport, payloads


class Peer(FramedProtocol):
    """Echoes frames if `echo` is set, and records every event."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.received: list[bytes] = []
        self.log: list[Any] = []
        self.echo = False

    def frame_received(self, payload: bytes) -> None:
        self.received.append(payload)
        if self.echo:
            self.send_frame(payload)

    def broken(self, error: LlmosError) -> None:
        self.log.append(error)
        self.send_frame(b"last words")

    def closed(self) -> None:
        self.log.append("closed")


def connect(**options: Any) -> tuple[Peer, FakeTransport]:
    peer, transport = Peer(**options), FakeTransport()
    peer.connection_made(transport)
    return peer, transport


async def test_all_frames_of_one_turn_are_one_write() -> None:
    peer, transport = connect()
    for n in range(100):
        peer.send_frame(b"%d" % n)
    assert transport.writes == []
    await asyncio.sleep(0)
    assert len(transport.writes) == 1
    assert payloads(transport) == [b"%d" % n for n in range(100)]
    peer.send_frame(b"next turn")
    await asyncio.sleep(0)
    assert len(transport.writes) == 2
    await asyncio.sleep(0)
    assert len(transport.writes) == 2


async def test_answers_to_one_read_go_out_at_its_end() -> None:
    peer, transport = connect()
    peer.echo = True
    peer.data_received(b"".join(frame(b"%d" % n) for n in range(10)))
    assert len(transport.writes) == 1
    assert payloads(transport) == [b"%d" % n for n in range(10)]


async def test_what_was_queued_before_a_read_keeps_its_place() -> None:
    peer, transport = connect()
    peer.echo = True
    peer.send_frame(b"first")
    peer.data_received(frame(b"second"))
    await asyncio.sleep(0)
    assert payloads(transport) == [b"first", b"second"]
    assert len(transport.writes) == 1


async def test_a_peer_that_does_not_read_is_cut_off() -> None:
    peer, transport = connect(unread_limit=1000)
    transport.unread = 1000
    peer.send_frame(b"x")
    await asyncio.sleep(0)
    assert transport.log == []
    transport.unread = 1001
    peer.send_frame(b"x")
    await asyncio.sleep(0)
    assert transport.log == ["abort"]
    (error,) = peer.log
    assert isinstance(error, SlowReader)
    assert error.data == {"unread": 1001}
    peer.send_frame(b"nobody gets this")
    await asyncio.sleep(0)
    assert len(transport.writes) == 2


async def test_a_broken_frame_is_told_and_the_connection_closed() -> None:
    peer, transport = connect(frame_limit=10)
    peer.data_received(frame(b"good") + HEADER.pack(11) + b"x" * 11 + frame(b"not seen"))
    assert peer.received == [b"good"]
    (error,) = peer.log
    assert isinstance(error, FrameTooLarge)
    assert payloads(transport) == [b"last words"]
    assert transport.log == ["close"]


async def test_nothing_is_read_after_the_connection_began_to_close() -> None:
    class Quitter(Peer):
        def frame_received(self, payload: bytes) -> None:
            super().frame_received(payload)
            self.close()

    peer, transport = Quitter(), FakeTransport()
    peer.connection_made(transport)
    peer.data_received(frame(b"one") + frame(b"two"))
    assert peer.received == [b"one"]
    assert transport.log == ["close"]


async def test_a_client_that_does_not_read_answers_may_not_ask_for_more(kernel: Kernel) -> None:
    connection, transport = Connection(kernel, set()), FakeTransport()
    connection.connection_made(transport)
    connection.pause_writing()
    connection.resume_writing()
    assert transport.log == ["pause reading", "resume reading"]
    transport.closing = True
    connection.resume_writing()
    assert len(transport.log) == 2
    connection.connection_lost(None)


async def test_what_no_frame_can_hold_is_an_error_of_that_request_alone(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_server, "MAX_FRAME", 1000)
    connection, transport = Connection(kernel, set()), FakeTransport()
    connection.connection_made(transport)
    connection.data_received(frame(encode(Hello(VERSION, "someone"))))
    process = connection._process
    assert process is not None
    asked = [Request(1, Ping("x" * 1000)), Request(2, Ping("y")), Request(3, Logs(process.pid, 10))]
    connection.data_received(b"".join(frame(encode(one)) for one in asked))
    for text in ("x" * 1000, "not seen"):  # a stream that was ended carries no more events
        process.write_log(Log(process.pid, 0.0, "info", text))
    connection.data_received(frame(encode(Request(4, Ping("z")))))
    connection.flush()
    said = [decode(payload, FromDaemon) for payload in payloads(transport)]
    failures = {one.id: one.error.code for one in said if isinstance(one, Failure)}
    assert failures == {1: "FrameTooLarge", 3: "FrameTooLarge"}
    assert [one.id for one in said if isinstance(one, RawAnswer)] == [2, 3, 4]
    assert not [one for one in said if isinstance(one, StreamEvent)]
    connection.connection_lost(None)


async def test_frames_that_arrive_while_reading_is_paused_wait_in_their_order() -> None:
    class Careful(Peer):
        def frame_received(self, payload: bytes) -> None:
            super().frame_received(payload)
            if payload.startswith(b"wait"):
                self.hold(1)
                self.hold(2)

    peer, transport = Careful(), FakeTransport()
    peer.connection_made(transport)
    stream = b"".join(map(frame, (b"a", b"wait 1", b"b", b"wait 2", b"c")))
    peer.data_received(stream[:-3])
    assert peer.received == [b"a", b"wait 1"]
    peer.release(1)
    assert (peer.received, transport.log) == ([b"a", b"wait 1"], ["pause reading"])  # there is another reason
    peer.release(2)
    assert (peer.received, transport.log[1:]) == ([b"a", b"wait 1", b"b", b"wait 2"], ["pause reading"])
    peer.data_received(stream[-3:])  # read before the pause
    peer.release(1)
    peer.release(2)
    assert peer.received == [b"a", b"wait 1", b"b", b"wait 2", b"c"]
    assert transport.log[-1] == "resume reading"
    peer.release(2)
    assert transport.log.count("resume reading") == 1
    peer.connection_lost(None)


async def test_answers_to_very_many_requests_are_written_in_parts() -> None:
    peer, transport = connect()
    peer.echo = True
    peer.data_received(frame(b"x") * 1000)
    assert 5 < len(transport.writes) < 10
    assert payloads(transport) == [b"x"] * 1000


async def test_a_peer_that_leaves_the_last_words_unread_is_cut_off_after_a_while() -> None:
    peer, transport = connect()
    transport.unread = 1
    peer.close()
    peer.close()
    assert transport.log == ["close", "close"]
    await asyncio.sleep(LINGER + 1)
    assert transport.log == ["close", "close", "abort"]
    peer.connection_lost(None)


async def test_close_writes_what_is_queued_first() -> None:
    peer, transport = connect()
    peer.send_frame(b"goodbye")
    peer.close()
    assert payloads(transport) == [b"goodbye"]
    assert transport.log == ["close"]
    await asyncio.sleep(0)
    assert len(transport.writes) == 1


async def test_a_lost_connection_forgets_what_was_queued() -> None:
    peer, transport = connect()
    peer.send_frame(b"x")
    peer.connection_lost(None)
    await asyncio.sleep(0)
    assert transport.writes == []
    assert peer.log == ["closed"]
    peer.send_frame(b"y")
    peer.close()
    await asyncio.sleep(0)
    assert transport.writes == []


@pytest.mark.real_time
async def test_two_ends_with_much_to_say_do_not_wait_for_each_other() -> None:
    ours, theirs = socket.socketpair()
    loop = asyncio.get_running_loop()
    _, left = await loop.create_connection(Peer, sock=ours)
    _, right = await loop.create_connection(Peer, sock=theirs)
    right.echo = True
    sent = [bytes([n]) * (n * 997 % 50_000) for n in range(200)]
    for payload in sent:
        left.send_frame(payload)
    while len(left.received) < len(sent) and "closed" not in left.log:
        await asyncio.sleep(0.001)
    assert left.received == sent
    left.close()
    while "closed" not in right.log:
        await asyncio.sleep(0.001)


@pytest.mark.real_time
async def test_a_real_peer_that_never_reads_is_cut_off() -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    _, peer = await asyncio.get_running_loop().create_connection(lambda: Peer(unread_limit=1_000_000), sock=ours)
    sent = 0
    while not peer.log and sent < 100_000_000:
        peer.send_frame(bytes(100_000))
        sent += 100_000
        await asyncio.sleep(0)
    assert isinstance(peer.log[0], SlowReader)
    assert sent < 5_000_000
    while "closed" not in peer.log:
        await asyncio.sleep(0.001)
    theirs.close()
