"""The journal: tasks accepted with 64 in flight beside bare grouped commits of the same rows; a start with many tasks.

Both sides write with the same binding and the same sync mode to the same disk, in turn; ratios are medians over rounds.
On a new journal the bare commits extend SQLite's log, and the journal has preallocated its own; later both overwrite
their log. In each timed part both sides move their log to the main file equally often. Run by `make
bench`.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from ipc.codec import encode
from ipc.syscalls import Submit
from kernel.journal.journal import Journal
from kernel.journal.records import AcceptedTask
from kernel.journal.settings import FILE, JournalSettings
from kernel.journal.store import open_store
from llmosd import AsyncClient, Client, NoDaemon

ROUNDS = 9
IN_FLIGHT = 64
NEW = 120  # commits of one round on a new journal, if all tasks in flight share one: the log is moved once
OVER = 430  # the same where the log is overwritten: it is moved four times
WARM = 240  # commits before those
SUBMISSIONS = 3000
ALONE = 300
PENDING = 100_000
SCRIPTS = Path(sys.executable).parent


def task() -> AcceptedTask:
    call = Submit("echo", {"value": "x" * 100}, owner="bench")
    return AcceptedTask("echo", "bench", None, encode(call), time.time())


def columns(number: int, one: AcceptedTask) -> tuple[object, ...]:
    return number, one.program, one.owner, one.key, one.call, one.submitted, 1, 0


INSERT = (
    "INSERT INTO tasks (id, program, owner, key, call, submitted, attempt, crashes) "
    f"VALUES {','.join(['(?,?,?,?,?,?,?,?)'] * IN_FLIGHT)}"
)


def floor(folder: Path, sync: str, commits: int, warm: int) -> float:
    """Rows per second: one statement of 64 rows per commit, and nothing else. The tables are those of the journal."""
    store = open_store(folder / FILE, sync)
    batches = [
        [value for row in range(IN_FLIGHT) for value in columns(1 + batch * IN_FLIGHT + row, task())]
        for batch in range(warm + commits)
    ]
    start = 0.0
    for number, values in enumerate(batches):
        if number == warm:
            start = time.perf_counter()
        store.db.execute("BEGIN IMMEDIATE")
        store.db.execute(INSERT, values)
        store.db.execute("COMMIT")
    elapsed = time.perf_counter() - start
    store.close()
    return commits * IN_FLIGHT / elapsed


def floor_alone(folder: Path, sync: str) -> float:
    """Seconds of a commit of one row."""
    store = open_store(folder / FILE, sync)
    times = []
    for _ in range(ALONE):
        start = time.perf_counter()
        with store.transaction():
            store.accept([task()])
        times.append(time.perf_counter() - start)
    store.close()
    return statistics.median(times)


async def opened(folder: Path, sync: str) -> Journal:
    """A journal that has finished its start: the second read is answered after the first purge."""
    journal = Journal(folder, JournalSettings(sync=sync))  # type: ignore[arg-type]
    for _ in range(2):
        await journal.read(lambda store: None)
    return journal


async def ours(folder: Path, sync: str, commits: int, warm: int) -> float:
    """Tasks per second, accepted by a journal for 64 callers, each of which waits for its answer."""
    journal = await opened(folder, sync)
    if warm:
        await accepted(journal, warm * IN_FLIGHT)
    seconds = await accepted(journal, commits * IN_FLIGHT)
    await journal.close()
    return commits * IN_FLIGHT / seconds


async def accepted(journal: Journal, number: int) -> float:
    """Seconds until `number` tasks were accepted, a multiple of those in flight.

    The tasks are reused, so that a caller's next task is in the processor's cache, like one that was just received.
    """
    tasks = cycle([task() for _ in range(2 * IN_FLIGHT)])
    done = asyncio.Event()
    left, answers = number, 0

    def ask() -> None:
        nonlocal left
        left -= 1
        journal.accept(next(tasks), answered)

    def answered(outcome: object) -> None:
        nonlocal answers
        assert isinstance(outcome, AcceptedTask)
        answers += 1
        if left:
            ask()
        elif answers == number:
            done.set()

    start = time.perf_counter()
    for _ in range(IN_FLIGHT):
        ask()
    await done.wait()
    return time.perf_counter() - start


async def ours_alone(folder: Path, sync: str) -> float:
    """Seconds that a single caller waits for its answer."""
    journal = await opened(folder, sync)
    loop = asyncio.get_running_loop()
    times = []
    for _ in range(ALONE):
        answer: asyncio.Future[object] = loop.create_future()
        start = time.perf_counter()
        journal.accept(task(), answer.set_result)
        await answer
        times.append(time.perf_counter() - start)
    await journal.close()
    return statistics.median(times)


def fsync(folder: Path) -> float:
    """Seconds to write a page and sync it to the disk."""
    file = os.open(folder / "page", os.O_RDWR | os.O_CREAT)
    times = []
    for _ in range(200):
        start = time.perf_counter()
        os.write(file, bytes(4096))
        os.fdatasync(file)
        times.append(time.perf_counter() - start)
    os.close(file)
    return statistics.median(times)


async def over_the_socket(socket: Path) -> tuple[float, float]:
    """Tasks per second that a client submits, and that it runs to their end, with 64 in flight."""
    async with AsyncClient(socket) as llmos:
        await llmos.run("echo", {"value": 1})

        async def submit(share: int) -> None:
            for _ in range(share):
                await llmos.submit("echo", {"value": "x" * 100}, detach=True)

        async def run(share: int) -> None:
            for _ in range(share):
                await llmos.run("echo", {"value": "x" * 100})

        rates = []
        for one in (submit, run):
            start = time.perf_counter()
            await asyncio.gather(*(one(SUBMISSIONS // IN_FLIGHT) for _ in range(IN_FLIGHT)))
            rates.append(SUBMISSIONS // IN_FLIGHT * IN_FLIGHT / (time.perf_counter() - start))
        return rates[0], rates[1]


@contextmanager
def daemon(folder: Path) -> Iterator[tuple[Path, float]]:
    """A daemon on the state in `folder`: its socket, and seconds until it accepted a connection."""
    socket = folder / "llmosd.sock"
    agents = folder / "agents"
    agents.mkdir(exist_ok=True)
    (agents / "idle.py").write_text(
        "from llmosd import agent\n\n@agent\nasync def idle(ctx, value):\n    await ctx.sleep(3600)\n"
    )
    command = [SCRIPTS / "llmosd", "--socket", socket, "--state", folder, "--model", "simulated", "--agents", agents]
    environment = os.environ | {"LLMOSD_PRELOAD": "false", "LLMOSD_DRAIN_SECONDS": "0"}
    start = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment)
    try:
        while True:
            try:
                with Client(socket) as client:
                    client.ping()
                break
            except NoDaemon:
                time.sleep(0.002)
        yield socket, time.perf_counter() - start
    finally:
        process.kill()
        process.wait()


def many_pending(folder: Path) -> tuple[float, float, float]:
    """Seconds until a daemon accepts a connection without pending tasks, and with many; and until these all run."""
    with daemon(folder) as (_, empty):
        pass
    store = open_store(folder / FILE, "full")
    call = encode(Submit("idle", {"value": "x" * 100}, owner="bench", detach=True))
    with store.transaction():
        store.accept([AcceptedTask("idle", "bench", None, call, time.time()) for _ in range(PENDING)])
    store.close()
    start = time.perf_counter()
    with daemon(folder) as (socket, accepts), Client(socket) as client:
        while client.stats().processes < PENDING:
            time.sleep(0.02)
        return empty, accepts, time.perf_counter() - start


def main() -> None:
    console = Console(width=130)
    table = Table(title=f"Tasks persisted, {IN_FLIGHT} in flight, {os.cpu_count()} cores, medians of {ROUNDS} rounds")
    for column in ("", "floor: bare commits", "journal", "ratio"):
        table.add_column(column, justify="right")
    for sync, state, *size in (
        ("full", "new", NEW, 0),
        ("full", "log overwritten", OVER, WARM),
        ("normal", "new", NEW, 0),
    ):
        rows = []
        for _ in range(ROUNDS):
            with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
                rows.append((floor(Path(one), sync, *size), uvloop.run(ours(Path(other), sync, *size))))
        bare, made = (statistics.median(side) for side in zip(*rows, strict=True))
        ratio = statistics.median(second / first for first, second in rows)
        table.add_row(f"{sync}, {state}: tasks/s", f"{bare:,.0f}", f"{made:,.0f}", f"{ratio:.2f}")
    for sync in ("full", "normal"):
        rows = []
        for _ in range(ROUNDS):
            with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
                rows.append((floor_alone(Path(one), sync), uvloop.run(ours_alone(Path(other), sync))))
        bare, made = (statistics.median(side) for side in zip(*rows, strict=True))
        ratio = statistics.median(second / first for first, second in rows)
        table.add_row(f"{sync}: one alone, us", f"{bare * 1e6:,.0f}", f"{made * 1e6:,.0f}", f"{ratio:.2f}")
    console.print(table)

    table = Table(title="The daemon with a journal")
    table.add_column("")
    table.add_column("", justify="right")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table.add_row("a page and its fdatasync on this disk, us", f"{fsync(folder) * 1e6:,.0f}")
        with daemon(folder) as (socket, _):
            submitted, ran = uvloop.run(over_the_socket(socket))
        table.add_row(f"submissions over the socket, {IN_FLIGHT} in flight, /s", f"{submitted:,.0f}")
        table.add_row(f"runs of echo to their result, {IN_FLIGHT} in flight, /s", f"{ran:,.0f}")
    with tempfile.TemporaryDirectory() as name:
        empty, accepts, runs = many_pending(Path(name))
        table.add_row("start with an empty journal, until a connection, s", f"{empty:.3f}")
        table.add_row(f"start with {PENDING:,} pending tasks, until a connection, s", f"{accepts:.3f}")
        table.add_row("… until all of them run, s", f"{runs:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
