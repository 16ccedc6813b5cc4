"""The daemon under systemd, which these tests play: a socket that already exists, and the daemon's notifications."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from llmosd import Client
from llmosd.daemon.settings import shared
from tests.support.daemon import SCRIPTS

# As systemd does between fork and exec: the socket becomes descriptor 3, and the pid is the daemon's own.
EXEC = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid() if sys.argv[2] == "us" else 1), "LISTEN_FDS": "1"}
os.execv(sys.argv[3], sys.argv[3:])
"""
AGENTS = """
import os, time
from llmosd import Context, agent

@agent
async def environment(ctx: Context) -> list:
    return sorted(name for name in os.environ if name.startswith(("LISTEN_", "NOTIFY_", "WATCHDOG_")))

@agent
async def hang(ctx: Context, folder: str) -> None:
    open(folder + "/hanging", "w").close()
    while not os.path.exists(folder + "/over"):
        time.sleep(0.01)
"""


class Manager:
    """Plays systemd: opens the socket, starts the daemon, and receives its notifications."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self.path = folder / "activated.sock"
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen(64)
        self.heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.heard.bind(str(folder / "notify.sock"))
        self.heard.settimeout(60)
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, whose: str = "us", watchdog: int = 200_000, **environment: str) -> subprocess.Popen[bytes]:
        (self.folder / "llmosd.toml").touch()
        flags = ["--state", self.folder / "state", "--model", "simulated", "--agents", self.folder / "agents"]
        flags += ["--config", self.folder / "llmosd.toml"]
        command = [sys.executable, "-c", EXEC, str(self.listener.fileno()), whose, SCRIPTS / "llmosd", *flags]
        notify = {"NOTIFY_SOCKET": str(self.folder / "notify.sock"), "WATCHDOG_USEC": str(watchdog)}
        process = subprocess.Popen(
            [*command, "--socket", self.folder / "other.sock"],
            pass_fds=[self.listener.fileno()],
            stderr=subprocess.PIPE,
            env=os.environ | notify | {"LLMOSD_DRAIN_SECONDS": "1"} | environment,
        )
        self.processes.append(process)
        return process

    def hears(self, what: str) -> list[str]:
        """Wait for the next notification that has this line; return all its lines."""
        while True:
            lines = self.heard.recv(4096).decode().splitlines()
            if what in lines:
                return lines

    def said_by_now(self) -> list[str]:
        """The lines of all notifications that have arrived and were not read yet."""
        lines: list[str] = []
        self.heard.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                lines += self.heard.recv(4096).decode().splitlines()
        self.heard.settimeout(60)
        return lines

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
            assert process.stderr is not None
            process.stderr.close()
        self.listener.close()
        self.heard.close()


@pytest.fixture
def manager(folder, agents) -> Iterator[Manager]:
    manager = Manager(folder)
    yield manager
    manager.close()


def test_an_activated_socket_is_served_from_the_first_connection_on_and_never_unlinked(manager, folder):
    waiting = socket.socket(socket.AF_UNIX)
    waiting.connect(str(manager.path))  # before there is a daemon
    process = manager.start()
    status = next(line for line in manager.hears("READY=1") if line.startswith("STATUS="))
    assert str(manager.path) in status
    waiting.close()
    inode = manager.path.stat().st_ino
    with Client(manager.path) as client:
        assert client.run("echo", {"value": 1}) == 1
        assert client.run("environment") == []
    assert not (folder / "other.sock").exists()
    process.send_signal(signal.SIGTERM)
    assert manager.hears("STOPPING=1")
    assert process.wait(60) == 0
    assert manager.path.stat().st_ino == inode
    manager.start()  # the next one, on the same socket
    manager.hears("READY=1")
    with Client(manager.path) as client:
        assert [row.program for row in client.history()] == ["environment", "echo"]


def test_signs_of_life_come_from_the_loop_and_not_from_one_that_hangs(manager, folder, eventually):
    (folder / "llmosd.toml").write_text("[scheduling]\nburst = 0.0\n")  # else the kernel would interrupt the agent
    manager.start()
    manager.hears("READY=1")
    for _ in range(3):
        manager.hears("WATCHDOG=1")
    with Client(manager.path) as client:
        hanging = threading.Thread(target=client.run, args=("hang", {"folder": str(folder)}))
        hanging.start()
        eventually((folder / "hanging").exists, "the loop is held")
        manager.said_by_now()
        manager.heard.settimeout(1.0)  # ten times the pause between two of them
        with pytest.raises(TimeoutError):
            manager.heard.recv(4096)
        manager.heard.settimeout(60)
        (folder / "over").touch()
        assert manager.hears("WATCHDOG=1")
        hanging.join()


def test_ready_is_not_told_before_the_journal_is_open(manager):
    process = manager.start(LLMOSD_FAULTS="journal.open=EROFS")
    assert process.wait(60) == 1
    assert "READY=1" not in manager.said_by_now()


def test_a_socket_for_another_process_is_not_ours(manager, folder):
    manager.start("somebody else")
    manager.hears("READY=1")
    with Client(folder / "other.sock") as client:
        assert client.run("echo", {"value": 1}) == 1


def test_what_is_no_listening_unix_socket_is_named(manager):
    manager.listener.close()
    manager.listener = socket.create_server(("127.0.0.1", 0))
    process = manager.start()
    assert process.wait(60) == 1
    assert process.stderr is not None
    assert b"does not listen at the path of a Unix socket" in process.stderr.read()


def test_the_units_are_shipped_and_name_the_default_socket():
    units = shared("config") / "systemd"
    assert "ListenStream=%t/llmosd.sock" in (units / "llmosd.socket").read_text()
    service = (units / "llmosd.service").read_text()
    assert "Type=notify" in service
    assert "RestartPreventExitStatus=2" in service
    assert "StartLimitIntervalSec=0" in service  # the search for a task that kills the daemon takes many starts
