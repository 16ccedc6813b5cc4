"""A real daemon under test: it runs in a process of its own, on a socket in a temporary folder.

Used by the system tests, mostly through their fixtures `start` and `launch`. It never shares a folder or a socket
with a daemon of the user.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from ipc.errors import NoDaemon
from llmosd import Client

SCRIPTS = Path(sys.executable).parent
START_TIMEOUT = 60.0  # seconds; only a daemon that hangs takes as long


class RunningDaemon:
    """A daemon under test. `socket`: the path of its socket. `log`: its standard error so far.

    `output` is a descriptor for its standard output and standard error, in place of the file of `log`.
    """

    def __init__(
        self, folder: Path, *flags: str, environment: dict[str, str] | None = None, output: int | None = None
    ) -> None:
        self.folder = folder
        self.socket = folder / "llmosd.sock"
        self._log = folder / f"daemon-{time.monotonic_ns()}.log"
        self.started = time.perf_counter()
        command: list[str | Path] = [SCRIPTS / "llmosd", "--socket", self.socket, "--state", folder / "state", *flags]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log if output is None else output,
                stderr=log if output is None else output,
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
            assert self.process.poll() is None, f"the daemon exited with {self.process.returncode}:\n{self.log}"
            with suppress(NoDaemon), self.client():
                return self
            time.sleep(0.01)
        raise AssertionError(f"the daemon did not start:\n{self.log}")

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
        """Send a signal, wait for the daemon to end, and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=60)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=60)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def eventually(condition: Callable[[], bool], what: str, timeout: float = 60.0) -> None:
    """Wait until another process has made `condition` true. Fails the test after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.01)
