"""The link between kernel and driver: whichever side or thread is late, all messages arrive whole and in order."""

from __future__ import annotations

import select
import socket
import threading

import pytest

from ipc.codec import decode, encode
from ipc.frames import FrameDecoder, frame
from kernel.drivers.child import KernelLink
from kernel.drivers.protocol import Cancel, FromDriver, Loading, ToDriver

GUARD = 60.0  # seconds; only a test that hangs takes as long
COUNT = 5

# A link ends its process when the kernel closes its socket: the sockets stay open until the test run ends.
OPEN: list[tuple[socket.socket, KernelLink]] = []


@pytest.fixture
def ends() -> tuple[socket.socket, KernelLink]:
    """The kernel's end of a connection, and the driver's."""
    ours, theirs = socket.socketpair()
    ours.settimeout(GUARD)
    OPEN.append((ours, KernelLink(theirs)))
    return OPEN[-1]


@pytest.mark.parametrize("late", ["nobody", "the reader", "the engine"])
@pytest.mark.parametrize("piece", [1, 7, 1 << 16])
def test_messages_of_the_kernel_arrive_in_order_in_any_pieces(
    ends: tuple[socket.socket, KernelLink], late: str, piece: int
) -> None:
    kernel, link = ends
    go, read = threading.Event(), threading.Semaphore(0)

    def prepare(message: ToDriver) -> ToDriver:
        assert late != "the reader" or go.wait(GUARD)
        read.release()
        return message

    link.prepare = prepare
    wanted = [Cancel(number) for number in range(COUNT)]
    data = b"".join(frame(encode(message)) for message in wanted)
    for start in range(0, len(data), piece):
        if not select.select([], [kernel], [], 0)[1]:
            go.set()  # the socket holds as much as it can: the reader cannot be later
        kernel.sendall(data[start : start + piece])
    assert late != "the reader" or go.is_set() or link.inbox.empty()
    go.set()
    if late == "the engine":
        assert all(read.acquire(timeout=GUARD) for _ in wanted)
    assert [link.inbox.get(timeout=GUARD) for _ in wanted] == wanted


def test_messages_of_several_threads_of_a_driver_arrive_whole_though_the_kernel_is_late(
    ends: tuple[socket.socket, KernelLink],
) -> None:
    kernel, link = ends
    texts = ["a" * 300_000, "b" * 100_000, "c"]  # more than the buffers of the socket hold

    def send(text: str) -> None:
        for _ in range(3):
            link.send(Loading(text), Loading("end"))

    threads = [threading.Thread(target=send, args=(text,), daemon=True) for text in texts]
    for thread in threads:
        thread.start()
    frames, found = FrameDecoder(), list[FromDriver]()
    while len(found) < 2 * 3 * len(texts):
        found += [decode(payload, FromDriver) for payload in frames.feed(kernel.recv(1 << 16))]
    assert all(isinstance(one, Loading) and one.stage in texts for one in found[::2])
    assert all(one == Loading("end") for one in found[1::2])
    for text in texts:
        assert sum(isinstance(one, Loading) and one.stage == text for one in found) == 3
