"""Fixtures for tests of a real daemon: it runs in a process of its own, on a socket in a temporary folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import hypothesis
import psutil
import pytest

from ipc.errors import NoDaemon
from kernel.drivers.transformers.__main__ import share_the_cores
from llmosd import Client

hypothesis.settings.register_profile("llmosd", deadline=None)  # a time is no test on a machine that others use
hypothesis.settings.load_profile("llmosd")
share_the_cores()  # as the driver does, before a test imports torch

SCRIPTS = Path(sys.executable).parent
START_TIMEOUT = 20.0  # seconds


class RunningDaemon:
    """A daemon under test. `socket` is its path, `log` what it wrote to standard error so far."""

    def __init__(self, folder: Path, *flags: str, environment: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.socket = folder / "llmosd.sock"
        self._log = folder / f"daemon-{time.monotonic_ns()}.log"
        self.started = time.perf_counter()
        command = [SCRIPTS / "llmosd", "--socket", self.socket, "--state", folder / "state", *flags]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"HF_HUB_OFFLINE": "1", "LLMOSD_DRAIN_SECONDS": "2"} | (environment or {}),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_until_ready(self) -> RunningDaemon:
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"the daemon ended with {self.process.returncode}:\n{self.log}"
            with suppress(NoDaemon), self.client():
                return self
            time.sleep(0.01)
        raise AssertionError(f"the daemon did not come up:\n{self.log}")

    def client(self) -> Client:
        return Client(self.socket)

    def llmos(
        self, *arguments: str, stdin: str | None = None, timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run the `llmos` command against this daemon."""
        return subprocess.run(
            [SCRIPTS / "llmos", *arguments],
            input=stdin if stdin is not None else "",
            capture_output=True,
            text=True,
            timeout=timeout,
            env=os.environ | {"LLMOSD_SOCKET": str(self.socket)},
            check=False,
        )

    def memory(self) -> int:
        return int(psutil.Process(self.pid).memory_info().rss)

    def kill(self, number: int = signal.SIGKILL) -> int:
        """Send a signal and wait for the end; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=30)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=15)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A temporary folder with a path short enough for a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="llmosd-test-") as path:
        yield Path(path)


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., RunningDaemon]]:
    """Starts daemons with the simulated model; they end with the test."""
    daemons: list[RunningDaemon] = []

    def start(*flags: str, environment: dict[str, str] | None = None, ready: bool = True) -> RunningDaemon:
        model = () if "--model" in flags else ("--model", "simulated")
        daemons.append(RunningDaemon(folder, *model, *flags, environment=environment))
        return daemons[-1].wait_until_ready() if ready else daemons[-1]

    yield start
    for daemon in daemons:
        daemon.stop()


@pytest.fixture
def daemon(start: Callable[..., RunningDaemon]) -> RunningDaemon:
    """A daemon with the simulated model."""
    return start()


def eventually(condition: Callable[[], bool], what: str, timeout: float = 10.0) -> None:
    """Wait for something another process does. Fails the test if it does not come."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.01)


@pytest.fixture
def trial() -> Callable[..., int]:
    """How many rounds a trial has: the short form in `make test`, the long one in `make soak`."""

    def rounds(*, short: int, long: int) -> int:
        return long if os.environ.get("LLMOS_SOAK") else short

    return rounds


@pytest.fixture(name="eventually")
def eventually_fixture() -> Callable[..., None]:
    return eventually
