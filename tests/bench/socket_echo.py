"""The echo system call over the socket beside the bare floor: uvloop, u32 frames and msgspec, nothing else.

Both servers are processes of their own, driven by the same bare client in turn. Run by `make bench`.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import uvloop
from rich.console import Console
from rich.table import Table

from ipc.frames import HEADER, FrameDecoder, frame
from ipc.protocol import VERSION, FromDaemon, Hello, Request
from ipc.syscalls import Ping

ROUNDS = 7
SEQUENTIAL = 2000
IN_FLIGHT, EACH = 64, 200
CLIENTS, WINDOW, TURNS = 100, 8, 25
BODY = "x" * 100
ENCODE = msgspec.msgpack.Encoder().encode


class FloorRequest(msgspec.Struct, array_like=True, gc=False):
    """The request that a bare server decodes: it has as many fields as a message."""

    id: int
    sender: str
    recipient: str
    kind: str
    time: float
    deadline: float | None
    trace: str
    body: str


class FloorReply(msgspec.Struct, array_like=True, gc=False):
    id: int
    ok: bool
    body: str


class FloorServer(asyncio.Protocol):
    """Decodes, encodes, writes once per read."""

    def connection_made(self, transport):
        self.transport, self.frames = transport, FrameDecoder()
        self.decode = msgspec.msgpack.Decoder(FloorRequest).decode

    def data_received(self, data):
        out = []
        for payload in self.frames.feed(data):
            request = self.decode(payload)
            out.append(frame(ENCODE(FloorReply(request.id, True, request.body))))
        self.transport.write(b"".join(out))


class BareClient(asyncio.Protocol):
    """Sends the requests that `make` builds, and matches answers by id; the same for both servers."""

    def __init__(self, make, decode):
        self.make, self.decode = make, decode
        self.loop = asyncio.get_running_loop()
        self.frames, self.pending, self.out, self.last = FrameDecoder(), {}, [], 0

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        for payload in self.frames.feed(data):
            answer = self.decode(payload)
            future = self.pending.pop(getattr(answer, "id", 0), None)
            if future is not None:
                future.set_result(answer)

    def request(self):
        self.last += 1
        future = self.pending[self.last] = self.loop.create_future()
        payload = ENCODE(self.make(self.last))
        if not self.out:
            self.loop.call_soon(self.flush)
        self.out += (HEADER.pack(len(payload)), payload)
        return future

    def flush(self):
        out, self.out = self.out, []
        self.transport.write(b"".join(out))


def floor_request(number):
    return FloorRequest(number, "agent/planner-7", "agent/coder-12", "chat", 1.7e9, None, "4bf92f3577b34da6", BODY)


async def connected(path, make, decoder, greeting):
    loop = asyncio.get_running_loop()
    _, client = await loop.create_unix_connection(lambda: BareClient(make, decoder.decode), str(path))
    if greeting is not None:
        client.transport.write(frame(ENCODE(greeting)))
    return client


async def in_flight(clients, window, turns):
    """Requests per second of all `clients`, each with `window` of them unanswered."""

    async def several(client):
        for _ in range(turns):
            await client.request()

    start = time.perf_counter()
    await asyncio.gather(*(several(client) for client in clients for _ in range(window)))
    return len(clients) * window * turns / (time.perf_counter() - start)


async def measure(path, make, decoder, greeting):
    """Microseconds of a sequential round trip (p50), and requests per second, 64 in flight and 100 clients x 8."""
    client = await connected(path, make, decoder, greeting)
    await asyncio.sleep(0.05)
    for _ in range(300):
        await client.request()
    times = []
    for _ in range(SEQUENTIAL):
        start = time.perf_counter()
        await client.request()
        times.append(time.perf_counter() - start)

    rate = await in_flight([client], IN_FLIGHT, EACH)
    crowd = [await connected(path, make, decoder, greeting) for _ in range(CLIENTS)]
    await asyncio.sleep(0.05)
    many = await in_flight(crowd, WINDOW, TURNS)
    for one in crowd:
        one.transport.close()
    client.transport.close()
    return statistics.median(times) * 1e6, rate, many


async def serve_floor(path):
    await asyncio.get_running_loop().create_unix_server(FloorServer, path)
    await asyncio.Event().wait()


async def compare(folder):
    sides = {
        "floor": (folder / "floor.sock", floor_request, msgspec.msgpack.Decoder(FloorReply), None),
        "llmosd": (
            folder / "llmosd.sock",
            lambda number: Request(number, Ping(BODY)),
            msgspec.msgpack.Decoder(FromDaemon),
            Hello(VERSION, "bench"),
        ),
    }
    results = {side: [] for side in sides}
    for _ in range(ROUNDS):
        for side, how in sides.items():
            results[side].append(await measure(*how))
    return results


def main():
    if sys.argv[1:2] == ["serve-floor"]:
        uvloop.run(serve_floor(sys.argv[2]))
        return
    with tempfile.TemporaryDirectory(prefix="llmosd-bench-") as name:
        folder = Path(name)
        llmosd = [Path(sys.executable).parent / "llmosd", "--socket", folder / "llmosd.sock", "--state", folder]
        servers = [
            subprocess.Popen([sys.executable, __file__, "serve-floor", str(folder / "floor.sock")]),
            subprocess.Popen([*llmosd, "--model", "simulated"], stderr=subprocess.DEVNULL),
        ]
        try:
            while not all((folder / f"{side}.sock").exists() for side in ("floor", "llmosd")):
                time.sleep(0.05)
            time.sleep(1.0)  # the driver starts beside the daemon: let it finish
            results = uvloop.run(compare(folder))
        finally:
            for server in servers:
                server.terminate()
                server.wait()
    report(results)


CASES = (
    ("sequential p50, us", 0, True),
    ("64 in flight, req/s", 1, False),
    (f"{CLIENTS} clients x {WINDOW}, req/s", 2, False),
)


def report(results):
    table = Table(title=f"Echo over a Unix socket, {os.cpu_count()} cores, medians of {ROUNDS} rounds in turn")
    for column in ("", "floor", "llmosd", "ratio"):
        table.add_column(column, justify="right")
    for name, place, better_low in CASES:
        floor, ours = (statistics.median(row[place] for row in results[side]) for side in ("floor", "llmosd"))
        ratio = floor / ours if better_low else ours / floor
        table.add_row(name, f"{floor:,.0f}", f"{ours:,.0f}", f"{ratio:.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
