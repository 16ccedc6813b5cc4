"""Random frames and calls for a real daemon, beside a client whose answers must not change.

A seed decides all frames. In the long form, `make soak`, `LLMOS_FUZZ_SEED`, `LLMOS_FUZZ_FRAMES` and `LLMOS_FUZZ_CALLS`
set the seed, and how many frames and calls to send.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time

import pytest

from ipc.codec import decode, encode
from ipc.frames import FrameDecoder, frame
from ipc.protocol import VERSION, Abandon, Credit, FromDaemon, Hello, Request
from ipc.syscalls import Backup, Kill, Link, Nice, Ping, Ps, SharedGet, SharedSet, Shutdown, Spawn, Suspend
from tests.support.fuzzing import CALLS, MISTAKES, RandomCalls, encoded, mutated

AGENTS = """
from llmosd import Context, agent

@agent
async def double(ctx: Context, number: int) -> int:
    return 2 * number

@agent
async def echo(ctx: Context) -> None:
    while True:
        message = await ctx.receive()
        await ctx.reply(message, message.body)
"""

SEED = int(os.environ.get("LLMOS_FUZZ_SEED", "20261201"))
FRAMES = int(os.environ.get("LLMOS_FUZZ_FRAMES", "100000"))
CALLS_MADE = int(os.environ.get("LLMOS_FUZZ_CALLS", "30000"))
PER_CONNECTION = 50  # frames
GROWTH = 150_000_000  # bytes that the daemon may grow by; what it retains of ended processes and tasks is bounded
HANG = 60.0  # seconds; a guard, not a bound

# These stop the daemon, write files, or harm the neighbour if they name it.
HARMFUL = (Shutdown, Backup, Kill, Suspend, Nice, Link)


class Fuzzer:
    """A client that sends bytes, and reads what it gets without waiting for it."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(HANG)
        self.socket.connect(str(path))
        self.frames = FrameDecoder()
        self.socket.sendall(frame(encode(Hello(VERSION, "fuzzer"))))
        (welcome,) = self.read()
        self.pid = welcome.pid
        self.answers = 0

    def read(self):
        """At least one message; none at the end of the connection."""
        while True:
            data = self.socket.recv(1 << 20)
            messages = [decode(payload, FromDaemon) for payload in self.frames.feed(data)]
            if messages or not data:
                return messages

    def send(self, data):
        """Send `data` and read all answers that are there. Returns whether the connection goes on."""
        try:
            self.socket.sendall(data)
            self.socket.setblocking(False)
            while received := self.socket.recv(1 << 20):
                self.answers += sum(decode(payload, FromDaemon) is not None for payload in self.frames.feed(received))
            return False
        except BlockingIOError:
            return True
        except (BrokenPipeError, ConnectionResetError):
            return False
        finally:
            self.socket.settimeout(HANG)

    def end(self):
        """Send no more, and read all answers until the daemon closes the connection."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)
            while received := self.socket.recv(1 << 20):
                self.answers += sum(decode(payload, FromDaemon) is not None for payload in self.frames.feed(received))
        self.socket.close()


class Neighbour:
    """A client whose answers must not change, with an agent of its own."""

    def __init__(self, client):
        self.client = client
        self.echo = client.request(Spawn("echo"))
        client.request(SharedSet("neighbour", {"its": "value"}))
        self.expected = self.answers()

    def answers(self):
        client = self.client
        return (
            client.ping("alive"),
            client.run("double", {"number": 21}),
            client.call(self.echo, "hello"),
            client.request(SharedGet("neighbour")),
            [program.name for program in client.programs()],
        )

    def check(self):
        assert self.answers() == self.expected


def fuzz(daemon, count, make):
    """Send `count` frames that `make` makes for the pid of a connection, and check that they harm nobody."""
    seconds = time.perf_counter()
    chance = random.Random(SEED)
    answers = connections = sent = early = 0
    with daemon.client() as client:
        neighbour = Neighbour(client)
        while sent < count:
            fuzzer = Fuzzer(daemon.socket)
            connections += 1
            next_frame = make(chance, fuzzer.pid)
            for _ in range(PER_CONNECTION):
                sent += 1
                if not fuzzer.send(next_frame()):
                    break
            fuzzer.end()
            answers += fuzzer.answers
            if connections % 20 == 0:
                neighbour.check()
            if not early and sent > count // 3:
                early = daemon.memory()
        neighbour.check()
        grown = daemon.memory() - early
        rows = client.ps()
    assert daemon.process.poll() is None
    log = daemon.log
    assert [line[:2_000] for line in log.splitlines() if any(mistake in line for mistake in MISTAKES)] == []
    assert grown < GROWTH
    print(
        f"{sent} frames on {connections} connections, {answers} answers, {len(rows)} processes left, "
        f"{grown / 1e6:.1f} MB grown, {len(log) / 1e6:.1f} MB of log, {time.perf_counter() - seconds:.1f} s"
    )


def typed_calls(kinds, oddness):
    def make(chance, pid):
        calls = RandomCalls(chance, kinds, (pid, pid, 999_999, 0), oddness)
        number = 0

        def next_frame():
            nonlocal number
            number += 1
            return frame(encoded(["request", number, calls.call()]))

        return next_frame

    return make


def mutated_frames(chance, pid):
    kinds = [kind for kind in CALLS if kind not in HARMFUL]
    calls = RandomCalls(chance, kinds, (pid, 999_999), 0.0)
    fixed = [encode(message) for message in (Hello(VERSION, "x"), Credit(1, 1), Abandon(1), Request(1, Ping()))]
    fixed += [encode(Request(2, Ps())), encode(Request(3, Spawn("double", {"number": 1}, credit=5)))]
    fixed.append(encode(Request(4, SharedSet("a", {"some": ["value"]}))))
    number = 10

    def next_frame():
        nonlocal number
        number += 1
        payload = chance.choice(fixed) if chance.random() < 0.3 else encoded(["request", number, calls.call()])
        return mutated(payload, chance) if chance.random() < 0.8 else frame(payload)

    return next_frame


@pytest.mark.soak
def test_mutated_frames_harm_nobody(launch, trial):
    fuzz(launch(), trial(short=600, long=FRAMES), mutated_frames)


@pytest.mark.soak
def test_random_calls_of_a_client_harm_nobody(launch, trial):
    kinds = [kind for kind in CALLS if kind not in HARMFUL]
    fuzz(launch(), trial(short=600, long=CALLS_MADE), typed_calls(kinds, 0.15))
