"""A daemon for one bench, with settings of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmosd import Client, NoDaemon


@contextmanager
def daemon(settings: str = "") -> Iterator[Path]:
    """The socket of a daemon that runs until the end of the block."""
    with tempfile.TemporaryDirectory(prefix="llmosd-bench-") as name:
        folder = Path(name)
        socket = folder / "llmosd.sock"
        (folder / "llmosd.toml").write_text(settings)
        command = [Path(sys.executable).parent / "llmosd", "--socket", socket, "--state", folder / "state"]
        process = subprocess.Popen([*command, "--config", folder / "llmosd.toml"], stderr=subprocess.DEVNULL)
        try:
            _wait_for(socket, process)
            yield socket
        finally:
            process.terminate()
            process.wait()


def _wait_for(socket: Path, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        try:
            with Client(socket) as client:
                client.ping()
            return
        except NoDaemon:
            time.sleep(0.01)
    raise SystemExit("the daemon did not start")
