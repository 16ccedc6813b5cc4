"""Raw frames sent to a real daemon: a broken peer gets a named error, and no other client notices."""

from __future__ import annotations

import socket
import struct

import msgspec
import pytest

from ipc.codec import decode, encode
from ipc.errors import NotACall, TimedOut
from ipc.frames import MAX_FRAME, FrameDecoder, frame
from ipc.messages import Result
from ipc.protocol import VERSION, Abandon, Credit, Failure, FromDaemon, Hello, Request, StreamEvent, Welcome
from ipc.syscalls import (
    AcquireLock,
    AcquirePermit,
    Call,
    Child,
    Nice,
    Ping,
    Publish,
    Receive,
    Reply,
    Send,
    Sleep,
    Spawn,
    Supervise,
    UseTool,
    Wait,
    WaitForNotice,
)
from llmosd import Client


class Peer:
    """A client that can send any bytes."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(str(path))
        self.frames = FrameDecoder()
        self.inbox = []

    def send(self, *messages):
        self.socket.sendall(b"".join(frame(m if isinstance(m, bytes) else encode(m)) for m in messages))

    def read(self):
        """The next message, or None at the end of the connection."""
        while not self.inbox:
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self.inbox += [decode(payload, FromDaemon) for payload in self.frames.feed(data)]
        return self.inbox.pop(0)

    def welcome(self):
        self.send(Hello(VERSION, "peer"))
        message = self.read()
        assert isinstance(message, Welcome)
        self.pid = message.pid
        return self

    def failure(self):
        message = self.read()
        assert isinstance(message, Failure), message
        return message


@pytest.fixture
def peer(daemon):
    peer = Peer(daemon.socket)
    yield peer
    peer.socket.close()


@pytest.fixture
def neighbour(daemon):
    """A well-behaved client that must not notice anything."""
    with daemon.client() as client:
        yield client
        assert client.ping("unharmed") == "unharmed"


def test_a_request_before_the_hello_is_refused(peer, neighbour):
    peer.send(Request(1, Ping()))
    assert peer.failure().error.code == "OutOfTurn"
    assert peer.read() is None


def test_a_second_hello_is_refused(peer, neighbour):
    peer.welcome().send(Hello(VERSION, "again"))
    assert peer.failure().error.code == "OutOfTurn"
    assert peer.read() is None


def test_a_name_of_any_length_is_refused_and_no_name_is_one(daemon, peer, neighbour):
    peer.send(Hello(VERSION, "x" * 201))
    error = peer.failure().error
    assert (error.code, "the name of a client" in error.message) == ("InvalidCall", True)
    assert peer.read() is None
    with Client(daemon.socket, name="") as client:  # as of a client in another language
        assert {row.program for row in client.ps(clients=True)} == {"client"}


def test_another_version_is_refused_with_both(peer, neighbour):
    peer.send(Hello(VERSION + 1, "newer"))
    error = peer.failure().error
    assert error.code == "VersionMismatch"
    assert error.data == {"client": VERSION + 1, "daemon": VERSION}


def test_a_frame_too_long_is_refused_before_it_is_sent(peer, neighbour):
    peer.welcome()
    peer.socket.sendall(struct.pack("<I", MAX_FRAME + 1))
    error = peer.failure().error
    assert error.code == "FrameTooLarge"
    assert error.data == {"length": MAX_FRAME + 1, "limit": MAX_FRAME}
    assert peer.read() is None


def test_a_malformed_frame_is_refused(peer, neighbour):
    peer.welcome().send(b"\xc1 not msgpack")
    failure = peer.failure()
    assert (failure.id, failure.error.code) == (0, "MalformedFrame")
    assert peer.read() is None


def test_an_unknown_call_is_that_request_s_error_alone(peer, neighbour):
    peer.welcome().send(msgspec.msgpack.encode(["request", 7, ["fly", 1, 2]]), Request(8, Ping("next")))
    failure = peer.failure()
    assert (failure.id, failure.error.code) == (7, "UnknownCall")
    assert "'fly'" in failure.error.message
    assert peer.read().id == 8


def test_a_bad_field_is_named(peer, neighbour):
    peer.welcome().send(Request(3, Spawn("echo", priority=99)))
    failure = peer.failure()
    assert (failure.id, failure.error.code) == (3, "InvalidCall")
    assert "priority" in failure.error.message
    assert "20" in failure.error.message


NEGATIVE = [
    (Receive(timeout=-1.0), "timeout"),
    (Receive(timeout=float("nan")), "timeout"),
    (Call(1, "x", timeout=-0.5), "timeout"),
    (Wait(1, timeout=-1.0), "timeout"),
    (AcquireLock("a", timeout=-1.0), "timeout"),
    (AcquirePermit("a", 1, timeout=-1.0), "timeout"),
    (WaitForNotice("a", timeout=-1.0), "timeout"),
    (UseTool("any", timeout=-1.0), "timeout"),
    (Sleep(-1.0), "seconds"),
    (Send(1, "x", lifetime=-1.0), "lifetime"),
    (Publish("t", "x", lifetime=-1.0), "lifetime"),
    (Spawn("echo", deadline=-1.0), "deadline"),
    (Supervise([Child("echo")], backoff=-1.0), "backoff"),
    (Supervise([Child("echo")], within=0.0), "within"),
    (Nice(1, 41), "priority"),
]


def test_negative_times_and_the_like_are_refused_by_name_and_stand_in_the_statistics(daemon, peer, neighbour):
    peer.welcome()
    for number, (call, field) in enumerate(NEGATIVE, 1):
        peer.send(Request(number, call))
        failure = peer.failure()
        assert (failure.id, failure.error.code) == (number, "InvalidCall")
        assert field in failure.error.message
    assert neighbour.stats().errors == {"InvalidCall": len(NEGATIVE)}
    assert f"InvalidCall {len(NEGATIVE)}" in daemon.llmos("stats").stdout


def test_no_client_receives_or_replies_for_another(daemon, peer, neighbour):
    """No call can name a mailbox to read, and only the process that was called may reply."""
    assert Receive.__struct_fields__ == ("timeout", "type", "sender", "correlation", "where")
    assert Reply.__struct_fields__ == ("to", "message", "body")
    peer.welcome().send(Request(1, Call(neighbour.pid, "for the neighbour alone")))
    called = neighbour.receive(timeout=60)
    with daemon.client() as intruder:
        with pytest.raises(TimedOut):
            intruder.receive(timeout=0)
        with pytest.raises(NotACall):
            intruder.reply(called, "for the neighbour")
    neighbour.reply(called, "by the neighbour itself")
    with pytest.raises(NotACall):
        neighbour.reply(called, "once more")
    assert decode(peer.read().value) == "by the neighbour itself"
    assert neighbour.stats().errors == {"TimedOut": 1, "NotACall": 2}


def test_a_request_id_in_use_is_refused_and_the_first_goes_on(peer, neighbour):
    ask = Spawn("ask", {"question": "q", "max_tokens": 30}, credit=1000)
    peer.welcome().send(Request(1, ask), Request(1, Ping()))
    seen = [peer.read()]
    while not (isinstance(seen[-1], StreamEvent) and isinstance(seen[-1].event, Result)):
        seen.append(peer.read())
    assert [message.error.code for message in seen if isinstance(message, Failure)] == ["OutOfTurn"]


@pytest.mark.parametrize("known", [False, True])
def test_a_task_abandoned_at_once_is_killed(peer, neighbour, known, eventually):
    """Also while its program is still being loaded, when there is no process yet."""
    if known:
        neighbour.run("ask", {"question": "q", "max_tokens": 1})
    ask = Spawn("ask", {"question": "q", "max_tokens": 8000}, credit=1000)
    peer.welcome().send(Request(1, ask), Abandon(1), Request(2, Ping()))
    while peer.read().id != 2:
        pass
    eventually(lambda: not neighbour.ps() and not neighbour.slots()[0].used, "nothing left")


def test_ids_of_different_connections_do_not_collide(daemon):
    peers = [Peer(daemon.socket).welcome() for _ in range(3)]
    for number, peer in enumerate(peers):
        peer.send(Request(1, Ping(number)))
    for number, peer in enumerate(peers):
        answer = peer.read()
        assert decode(answer.value) == [number]
        peer.socket.close()


def test_credit_and_abandon_for_unknown_requests_are_ignored(peer):
    peer.welcome().send(Credit(99, 5), msgspec.msgpack.encode(["abandon", 99]), Request(1, Ping(5)))
    assert peer.read().id == 1


def test_an_unknown_recipient_answers_the_sender(peer):
    peer.welcome().send(Request(1, Send(999_999, "hello?")))
    assert peer.failure().error.code == "UnknownProcess"


def test_no_more_events_than_credit(peer):
    peer.welcome().send(Request(1, Spawn("ask", {"question": "q", "max_tokens": 50}, credit=3)))
    assert peer.read().id == 1
    events = [peer.read() for _ in range(3)]
    peer.send(Request(2, Ping()))
    assert peer.read().id == 2
    peer.send(Credit(1, 1000))
    while type(events[-1].event).__name__ != "Result":
        events.append(peer.read())
    text = "".join(event.event.text for event in events if hasattr(event.event, "text"))
    assert text == events[-1].event.value
    assert text.count("s") == 50


def test_a_client_that_never_reads_is_cut_off(daemon, neighbour, eventually):
    peer = Peer(daemon.socket).welcome()
    before = daemon.memory()
    big = "x" * 1_000_000
    peer.socket.settimeout(0.5)
    try:
        for number in range(1, 400):
            peer.send(Request(number, Ping(big)))
    except (TimeoutError, BrokenPipeError, ConnectionResetError):
        pass
    assert daemon.memory() - before < 150_000_000
    peer.socket.close()
    eventually(lambda: neighbour.stats().connections == 1, "the connection is gone")


def test_answers_come_out_of_order(peer):
    peer.welcome().send(Request(1, Receive(timeout=30)), Request(2, Ping("quick")))
    assert peer.read().id == 2
    peer.send(Request(3, Send(peer.pid, "to myself")))
    assert sorted((peer.read().id, peer.read().id)) == [1, 3]


@pytest.mark.parametrize(
    "call",
    [
        b"\x92\xa4ping" + b"\x91" * 100_000 + b"\xc0",
        b"\x93\xa4send\x01" + b"\x91" * 5_000,
        b"\x92\xa4ping\xa3\xff\xfe\xfd",
        b"\x92\xa8register\xa3\xed\xa0\x80",
        b"\xc1",
        b"",
    ],
    ids=["nested 100,000 deep", "nested and cut", "no UTF-8", "half a surrogate", "no msgpack", "nothing"],
)
def test_a_call_that_cannot_be_decoded_fails_alone(peer, neighbour, call):
    peer.welcome().send(b"\x93\xa7request\xcd\x01\x07" + call, Request(8, Ping("next")))
    answers = {}
    for _ in range(2):
        message = peer.read()
        answers[message.id] = message
    assert decode(answers[8].value) == ["next"]
    if (failure := answers.get(0x107)) is not None and isinstance(failure, Failure):
        assert failure.error.code == "InvalidCall"


def test_a_schema_nested_too_deeply_is_refused_by_name(peer, neighbour):
    schema = '{"items":' * 3_000 + "{}" + "}" * 3_000
    sampling = {"constraint": {"kind": "schema", "value": schema}}
    peer.welcome().send(encode(["request", 1, ["generate", "x", None, sampling]]), Request(2, Ping("next")))
    answers = sorted((peer.read() for _ in range(2)), key=lambda message: message.id)
    assert answers[0].error.code in ("InvalidConstraint", "InvalidCall"), answers[0]
    assert decode(answers[1].value) == ["next"]
