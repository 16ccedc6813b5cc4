"""A log that nobody reads, and a full disk: no task and no stop waits for either."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from llmosd import AgentFailed, Client
from tests.support.daemon import SCRIPTS, RunningDaemon
from tests.support.terminal import Typist

GUARD = 60.0  # seconds; only a test that hangs takes as long

AGENTS = """
import logging, os, subprocess, sys, threading, warnings
from llmosd import agent

@agent
async def noisy(ctx, lines: int):
    for number in range(lines):
        print("line", number, "x" * 200)
    return lines

@agent
async def direct(ctx):
    "Writes past sys.stdout and sys.stderr, from this process and from others."
    sys.__stderr__.write("e" * 100_000)
    sys.__stdout__.write("o" * 100_000)
    for number in (1, 2):
        text = b"d" * 100_000
        while text:
            text = text[os.write(number, text):]
    subprocess.run([sys.executable, "-c", "import sys; print('c' * 200_000); print('c' * 200_000, file=sys.stderr)"])
    os.system("head -c 200000 /dev/zero >&2")
    return "written"

@agent
async def flooding(ctx):
    for _ in range(6):  # more than the queue holds
        sys.__stderr__.write("x" * 1_000_000 + "\\n")

@agent
async def asking(ctx):
    return input("name? ")

@agent
async def reading(ctx):
    return sys.stdin.read()
"""


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for number in (reading, writing):
        with suppress(OSError):
            os.close(number)


def fill(number: int) -> None:
    os.set_blocking(number, False)
    with suppress(BlockingIOError):
        while os.write(number, b"x" * 4096):
            pass
    os.set_blocking(number, True)


def all_tasks_end(daemon: RunningDaemon, tasks: int) -> None:
    with daemon.client() as client:
        running = [client.submit("noisy", {"lines": 20}) for _ in range(tasks)]
        assert [task.result() for task in running] == [20] * tasks
        assert client.run("direct") == "written"
        assert client.run("noisy", {"lines": 1}) == 1


def stops(daemon: RunningDaemon) -> None:
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.process.wait(GUARD) == 0
    assert not daemon.socket.exists()


@pytest.mark.parametrize("full_at_start", [pytest.param(False, marks=pytest.mark.soak(short=False)), True])
def test_a_log_that_nobody_reads_holds_up_no_task_and_no_stop(
    launch: Callable[..., RunningDaemon], pipe: tuple[int, int], full_at_start: bool
) -> None:
    if full_at_start:
        fill(pipe[1])
    daemon = launch("", "--log-level", "debug", output=pipe[1])
    all_tasks_end(daemon, 100)
    stops(daemon)


@pytest.mark.soak(short=False)
def test_ten_thousand_tasks_end_beside_a_log_that_nobody_reads(
    launch: Callable[..., RunningDaemon], pipe: tuple[int, int]
) -> None:
    daemon = launch("", "--log-level", "debug", output=pipe[1])
    for _ in range(100):
        all_tasks_end(daemon, 100)
    stops(daemon)


def test_a_reader_that_goes_away_and_a_full_disk_lose_no_task(
    launch: Callable[..., RunningDaemon], pipe: tuple[int, int]
) -> None:
    daemon = launch("", "--log-level", "debug", output=pipe[1])
    os.close(pipe[1])
    assert os.read(pipe[0], 10)
    os.close(pipe[0])
    all_tasks_end(daemon, 10)
    stops(daemon)
    full = os.open("/dev/full", os.O_WRONLY)
    daemon = launch("", "--log-level", "debug", output=full)
    os.close(full)
    with daemon.client() as client:
        assert client.run("noisy", {"lines": 20}) == 20
    stops(daemon)


def test_a_slow_reader_gets_the_number_of_lines_that_it_missed_and_the_last_line(
    launch: Callable[..., RunningDaemon], pipe: tuple[int, int]
) -> None:
    daemon = launch("", "--log-level", "debug", "--log-format", "human", output=pipe[1])
    os.close(pipe[1])
    with daemon.client() as client:
        client.run("flooding")
    text: list[bytes] = []

    def read() -> None:
        while data := os.read(pipe[0], 65_536):
            text.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    stops(daemon)
    reader.join(GUARD)
    log = b"".join(text)
    assert b"lines of the log were dropped" in log
    assert log.rstrip().endswith(b"stopped")


def test_the_reason_why_it_cannot_start_reaches_a_reader(
    start: Callable[..., RunningDaemon], pipe: tuple[int, int]
) -> None:
    daemon = start("--model", "/no/such/model.gguf", ready=False, output=pipe[1])
    os.close(pipe[1])
    assert daemon.process.wait(GUARD) == 2
    assert b"nothing at /no/such/model.gguf" in os.read(pipe[0], 65_536)


def test_an_agent_that_reads_standard_input_gets_its_end(folder: Path, agents: Path) -> None:
    socket = folder / "llmosd.sock"
    command = [SCRIPTS / "llmosd", "--socket", socket, "--state", folder / "state", "--model", "simulated"]
    with Typist([*command, "--agents", agents]) as terminal:
        terminal.see("listening")
        with Client(socket) as client:
            with pytest.raises(AgentFailed, match="EOFError"):
                client.run("asking")
            assert client.run("reading") == ""
            client.shutdown()
        assert terminal.end() == 0
    assert "stopped" in terminal.screen
