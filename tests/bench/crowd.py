"""The round trip of one client beside 2,000 idle clients and 100 slow ones, and without them, in turns.

Of the slow clients, half read the stream of a task slowly, and half send a frame of 16 MB slowly. They are in a process
of their own, which this file also is. Run by `make bench`.
"""

from __future__ import annotations

import os
import resource
import socket
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ipc.codec import encode
from ipc.frames import HEADER, MAX_FRAME, frame
from ipc.protocol import VERSION, Credit, Hello, Request
from ipc.syscalls import Spawn
from llmosd import Client
from tests.bench.daemon import daemon

IDLE, READERS, WRITERS = 2_000, 50, 50
PERIOD = 0.05  # seconds between two steps of the slow clients
STEP = 1_000  # bytes that a slow client reads or writes in a step
ROUNDS, PINGS = 4, 40_000  # A B A B, ...
SETTINGS = 'model = "simulated"\n[models.simulated]\ndriver = "simulated"\n'


def connect(path: str) -> socket.socket:
    """A client that has said hello, and has not read the welcome."""
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)
    client.sendall(frame(encode(Hello(VERSION, "crowd"))))
    return client


def slow_reader(path: str) -> socket.socket:
    client = connect(path)
    client.sendall(frame(encode(Request(1, Spawn("ask", {"question": "q", "max_tokens": 8_000}, credit=64)))))
    client.setblocking(False)
    return client


def slow_writer(path: str) -> socket.socket:
    client = connect(path)
    client.setblocking(False)
    client.send(HEADER.pack(MAX_FRAME))
    return client


def crowd(path: str) -> None:
    """Be the crowd until standard input ends."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    idle = [connect(path) for _ in range(IDLE)]
    readers = [slow_reader(path) for _ in range(READERS)]
    writers = [slow_writer(path) for _ in range(WRITERS)]
    print(len(idle), flush=True)
    os.set_blocking(0, False)
    while True:
        with suppress(BlockingIOError):
            if not os.read(0, 1):
                return
        time.sleep(PERIOD)
        for reader in readers:
            with suppress(BlockingIOError):
                reader.recv(STEP)
                reader.send(frame(encode(Credit(1, 1))))
        for place, writer in enumerate(writers):
            try:
                writer.send(bytes(STEP))
            except BlockingIOError:
                pass
            except OSError:  # the daemon has lost patience with it
                writer.close()
                writers[place] = slow_writer(path)


def pings(path: Path, *, alone: bool) -> list[float]:
    """Round trips in seconds, sorted. With `alone`, waits until the crowd has gone."""
    times = []
    with Client(path) as client:
        if alone:
            while client.stats().connections > 1:
                time.sleep(0.1)
        for _ in range(PINGS):
            start = time.perf_counter()
            client.ping()
            times.append(time.perf_counter() - start)
    return sorted(times)


def beside_the_crowd(path: Path) -> list[float]:
    process = subprocess.Popen([sys.executable, __file__, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdout.readline()
        return pings(path, alone=False)
    finally:
        process.stdin.close()
        process.wait()


def processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {os.cpu_count()} processors"
    return f"{os.cpu_count()} processors"


def main() -> None:
    table = Table(title=f"ping beside {IDLE} idle and {READERS + WRITERS} slow clients; {processor()}")
    for column in ("round", "alone p50", "p99", "crowd p50", "p99", "p99 ratio"):
        table.add_column(column, justify="right")
    ratios = []
    with daemon(SETTINGS) as path:
        pings(path, alone=True)
        for number in range(1, ROUNDS + 1):
            alone, crowded = pings(path, alone=True), beside_the_crowd(path)
            ratios.append(crowded[PINGS * 99 // 100] / alone[PINGS * 99 // 100])
            figures = [f"{1e6 * t[PINGS * part // 100]:.0f} us" for t in (alone, crowded) for part in (50, 99)]
            table.add_row(str(number), *figures, f"{ratios[-1]:.2f}")
    table.add_row("median", "", "", "", "", f"{statistics.median(ratios):.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    crowd(sys.argv[1]) if len(sys.argv) > 1 else main()
