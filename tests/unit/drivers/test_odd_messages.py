"""Messages between kernel and driver that cannot be sent, read or handled: each fails its sequence, and no other."""

from __future__ import annotations

import asyncio
import socket

import msgspec
import pytest

from ipc.codec import decode, encode
from ipc.frames import FrameDecoder, frame
from ipc.syscalls import Sampling
from kernel.drivers import child
from kernel.drivers.child import KernelLink
from kernel.drivers.process import DriverProcess
from kernel.drivers.protocol import Admit, Bundle, Cancel, Done, Embedded, FromDriver, SequenceFailed

GUARD = 60.0  # seconds


# A link ends its process when the kernel closes its socket: the sockets stay open until the test run ends.
OPEN: list[tuple[socket.socket, KernelLink]] = []


@pytest.fixture
def ends() -> tuple[socket.socket, KernelLink]:
    """The kernel's end of a connection, and the driver's."""
    ours, theirs = socket.socketpair()
    ours.settimeout(GUARD)
    OPEN.append((ours, KernelLink(theirs)))
    return OPEN[-1]


def answer(end: socket.socket) -> FromDriver:
    frames = FrameDecoder()
    while True:
        for payload in frames.feed(end.recv(1 << 16)):
            message: FromDriver = decode(payload, FromDriver)
            return message


def test_a_message_that_the_driver_cannot_read_fails_its_sequence_alone(ends: tuple[socket.socket, KernelLink]) -> None:
    kernel, link = ends
    odd = msgspec.msgpack.encode({"type": "admit", "sequence": 7, "prompt": 5, "sampling": {}, "lease": 1})
    kernel.sendall(frame(odd) + frame(b"\xc1") + frame(encode(Cancel(8))))
    failed = answer(kernel)
    assert isinstance(failed, SequenceFailed)
    assert (failed.sequence, failed.error.code) == (7, "LlmosError")
    assert link.inbox.get(timeout=GUARD) == Cancel(8)


def test_a_message_that_cannot_be_prepared_fails_its_sequence_alone(ends: tuple[socket.socket, KernelLink]) -> None:
    kernel, link = ends

    def prepare(message: object) -> object:
        if isinstance(message, Admit):
            raise RecursionError("too deep")
        return message

    link.prepare = prepare
    kernel.sendall(frame(encode(Admit(9, "a", Sampling(), 1))) + frame(encode(Cancel(8))))
    failed = answer(kernel)
    assert isinstance(failed, SequenceFailed)
    assert (failed.sequence, "too deep" in failed.error.message) == (9, True)
    assert link.inbox.get(timeout=GUARD) == Cancel(8)


@pytest.mark.parametrize("prompt", ["half a \ud800", "x" * (17 << 20)], ids=["half a surrogate", "17 MB"])
async def test_a_message_that_cannot_be_sent_fails_its_sequence_alone(prompt: str) -> None:
    received: list[FromDriver] = []
    driver = DriverProcess("model", received.append, lambda why: None)
    driver.send(Admit(5, prompt, Sampling(), 1))
    driver.send(Cancel(6))
    await asyncio.sleep(0.1)
    (failed,) = received
    assert isinstance(failed, SequenceFailed)
    assert failed.sequence == 5


def test_an_answer_that_is_too_large_for_a_frame_fails_its_sequence_alone(
    ends: tuple[socket.socket, KernelLink], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, link = ends
    monkeypatch.setattr(child, "MAX_FRAME", 10_000)
    link.send(Embedded(7, [[0.5] * 1000] * 2, 5), Embedded(8, [[0.5]], 5))
    failed = answer(kernel)
    assert isinstance(failed, SequenceFailed)
    assert (failed.sequence, failed.error.code) == (7, "FrameTooLarge")
    assert "ask for less in one call" in failed.error.message


async def test_a_driver_whose_message_fails_in_the_kernel_is_cut_off() -> None:
    def fail(message: FromDriver) -> None:
        raise KeyError("no such sequence")

    driver = DriverProcess("model", fail, lambda why: None)
    driver.data_received(frame(encode(Done(5, "stop"))) + frame(encode(Bundle([], 0, 0.0))))
    assert driver._closing
    assert "KeyError" in driver._violation
