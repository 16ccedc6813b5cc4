"""Many clients that hold something for ever: the daemon stays small, and a client beside them notices nothing."""

from __future__ import annotations

import asyncio
import resource
import socket
from contextlib import ExitStack

import psutil
import pytest

from ipc.codec import decode, encode
from ipc.frames import HEADER, MAX_FRAME, FrameDecoder, frame
from ipc.protocol import VERSION, Failure, FromDaemon, Hello, Welcome
from ipc.syscalls import Receive
from llmosd import AsyncClient, Busy, TimedOut

MOST = 300_000_000  # bytes by which the daemon may grow, whatever its clients hold


@pytest.fixture
def crowd(daemon):
    """Opens connections, which end with the test."""
    with ExitStack() as stack:

        def connect(hello: bool = True) -> socket.socket:
            connection = stack.enter_context(socket.socket(socket.AF_UNIX))
            connection.settimeout(60)
            connection.connect(str(daemon.socket))
            if hello:
                connection.sendall(frame(encode(Hello(VERSION, "crowd"))))
                assert isinstance(first_message(connection), Welcome)
            return connection

        yield connect


def first_message(connection: socket.socket):
    frames, found = FrameDecoder(), []
    while not found:
        data = connection.recv(1 << 16)
        if not data:
            return None
        found = list(frames.feed(data))
    return decode(found[0], FromDaemon)


def fill(connection: socket.socket, data: bytes) -> None:
    """Send as much of `data` as the daemon takes now."""
    connection.setblocking(False)
    view = memoryview(data)
    try:
        while view:
            view = view[connection.send(view) :]
    except OSError:  # it takes no more, or has lost patience
        pass


def test_a_hundred_clients_with_incomplete_frames_hold_little_and_the_next_one_sends_its_own(daemon, crowd):
    with daemon.client() as client:
        before = daemon.memory()
        peers = [crowd() for _ in range(100)]
        for _ in range(50):  # the daemon reads in between
            for peer in peers:
                fill(peer, HEADER.pack(MAX_FRAME) + bytes(15_000_000) if _ == 0 else bytes(300_000))
            client.ping()
        assert daemon.memory() - before < MOST
        assert client.ping("small") == "small"
        large = "x" * 1_000_000
        assert client.ping(large) == large  # its turn comes when a frame that makes no progress has gone
        assert client.stats().errors.get("SlowWriter", 0) >= 1
        assert client.run("echo", {"value": 1}) == 1
    answered = [message for peer in peers if isinstance(message := read(peer), Failure)]
    assert {message.error.code for message in answered} == {"SlowWriter"}


def read(peer: socket.socket):
    """The message that waits for the client, if any."""
    peer.setblocking(False)
    try:
        return first_message(peer)
    except OSError:
        return None


def refusal(stack: ExitStack, daemon) -> Busy | None:
    """Connect one more client; the error if it is refused."""
    try:
        stack.enter_context(daemon.client())
    except Busy as error:
        return error
    return None


def test_clients_beyond_the_descriptors_are_refused_for_now_and_the_daemon_works_on(daemon, eventually):
    """Journal, drivers and agents get descriptors when the clients have none left."""
    process = psutil.Process(daemon.pid)
    with daemon.client() as client, ExitStack() as stack:
        client.run("echo", {"value": 1})
        low = process.num_fds() + 40
        process.rlimit(psutil.RLIMIT_NOFILE, (low, low))
        refused = [error for _ in range(60) if (error := refusal(stack, daemon)) is not None]
        assert 30 <= len(refused) < 60
        assert refused[0].data == {"retry_after": 1.0}
        assert client.run("ask", {"question": "q", "max_tokens": 3}, timeout=60)
        assert daemon.llmos("ping").returncode != 0
        stack.close()
        eventually(lambda: client.stats().connections == 1, "the crowd is gone", 60)
        assert daemon.llmos("ping").returncode == 0


def test_the_daemon_raises_its_limit_of_descriptors(start):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, hard), hard))
    try:
        daemon = start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert psutil.Process(daemon.pid).rlimit(psutil.RLIMIT_NOFILE)[0] == min(hard, 1_048_576)


def test_a_client_in_a_program_with_many_open_files_works(daemon):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 1_200:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4_096), hard))
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(1_100):
            stack.enter_context(open("/dev/null"))
        client = stack.enter_context(daemon.client())
        assert client.ping("high") == "high"
        assert client.ping("x" * 5_000_000) == "x" * 5_000_000
        with pytest.raises(TimedOut):
            client.request(Receive(), 0.01)


async def test_a_client_that_sends_many_large_requests_at_once_gets_all_answers(daemon):
    async with AsyncClient(daemon.socket) as client:
        answers = await asyncio.gather(*(client.ping("x" * 9_000_000) for _ in range(10)))
    assert {len(answer) for answer in answers} == {9_000_000}
