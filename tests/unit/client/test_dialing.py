"""A client waits for a daemon that is starting, fails at once without one, and talks to no other user's program."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ipc.codec import encode
from ipc.daemon_lock import lock_path
from ipc.errors import Busy, NoDaemon, NotPermitted, to_wire
from ipc.frames import frame
from ipc.protocol import Failure
from ipc.unix import default_socket, try_connect
from kernel.lib import lockfile
from llmosd import AsyncClient, Client
from llmosd.client import bounds, dialing, starting
from llmosd.client.dialing import Dial

STRANGER = 4242


@pytest.fixture
def path(folder: Path) -> Path:
    return folder / "daemon.sock"


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other `llmosd` of this user is starting on the machine."""
    monkeypatch.setattr(starting, "_own_processes", list)


@pytest.fixture
def listener(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        yield server


@pytest.fixture
def run_as_llmosd(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Starts a program of this name that has done nothing yet, and returns its pid."""
    script = folder / "llmosd"
    script.write_text('#!/bin/sh\n[ -z "$LOCK" ] || exec 9<>"$LOCK"\necho started\nread line\n')
    script.chmod(0o755)
    running: list[subprocess.Popen[bytes]] = []

    def run(*arguments: str, lock: str = "") -> int:
        environment = os.environ | {"LOCK": lock}
        process = subprocess.Popen([script, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        running.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        monkeypatch.setattr(starting, "_own_processes", lambda: [process.pid])
        return process.pid

    yield run
    for process in running:
        process.communicate(timeout=60)


def test_without_a_daemon_the_first_attempt_fails(path: Path, alone: None) -> None:
    with pytest.raises(NoDaemon, match="start one with"):
        Dial(path).attempt()


def test_the_lock_of_a_dead_daemon_delays_nothing(path: Path, alone: None) -> None:
    os.close(lockfile.take(lock_path(path)))
    with pytest.raises(NoDaemon, match="start one with"):
        Dial(path).attempt()


def test_a_daemon_that_holds_the_lock_is_awaited(path: Path, alone: None) -> None:
    lock = lockfile.take(lock_path(path))
    dial = Dial(path)
    assert dial.attempt() is None
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        assert dial.attempt() is None, "it refuses connections: it does not listen yet"
        server.listen()
        connection = dial.attempt()
        assert connection is not None
        connection.close()
    os.close(lock)
    with pytest.raises(NoDaemon):
        dial.attempt()


def test_a_daemon_that_has_no_lock_yet_is_awaited(path: Path, run_as_llmosd: Callable[..., int]) -> None:
    pid = run_as_llmosd("--model", "simulated")
    assert starting.starting(path) == pid
    assert Dial(path).attempt() is None


def test_a_daemon_for_another_socket_is_not_awaited(
    path: Path, run_as_llmosd: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = run_as_llmosd("--socket", str(path))
    assert starting.starting(path) == pid
    run_as_llmosd("--socket", str(path), "--socket=/run/other.sock")
    assert starting.starting(path) is None
    run_as_llmosd("--socket", f"/run/{path.name}")
    assert starting.starting(path) is None, "the folder counts, too"
    monkeypatch.chdir(path.parent)
    assert starting.starting(path) is None
    pid = run_as_llmosd("--socket", f"./{path.name}")
    assert starting.starting(path) == pid


def test_a_daemon_with_the_lock_of_another_socket_is_not_awaited(
    path: Path, folder: Path, run_as_llmosd: Callable[..., int]
) -> None:
    run_as_llmosd(lock=str(folder / "other.sock.lock"))
    assert starting.starting(path) is None
    pid = run_as_llmosd(lock=str(lock_path(path)))
    assert starting.starting(path) == pid, "it took the lock after we had looked at the lock"


@pytest.mark.real_time
@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_a_daemon_that_never_listens_is_named_at_the_end(
    path: Path, alone: None, monkeypatch: pytest.MonkeyPatch, kind: type[Client | AsyncClient]
) -> None:
    monkeypatch.setattr(bounds, "CONNECT_TIMEOUT", 0.2)
    lock = lockfile.take(lock_path(path))
    client = kind(path)
    with pytest.raises(NoDaemon, match=f"pid {os.getpid()} has not begun to listen"):
        client.connect() if isinstance(client, Client) else await client.connect()
    os.close(lock)


@pytest.mark.parametrize(
    ("user", "peer", "named", "allowed"),
    [
        (1000, 1000, False, True),
        (1000, 0, False, True),
        (1000, STRANGER, False, False),
        (1000, STRANGER, True, False),
        (0, 0, False, True),
        (0, STRANGER, True, True),
        (0, STRANGER, False, False),
    ],
)
def test_only_the_user_and_root_may_serve_a_client_and_root_may_name_any_socket(
    path: Path,
    listener: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    user: int,
    peer: int,
    named: bool,
    allowed: bool,
) -> None:
    if not named:
        monkeypatch.setattr(dialing, "default_socket", lambda: path)
        monkeypatch.delenv("LLMOSD_SOCKET", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(dialing, "peer_uid", lambda connection: peer)
    if allowed:
        connection = Dial(path).attempt()
        assert connection is not None
        connection.close()
        return
    with pytest.raises(NotPermitted, match=f"served by user {STRANGER}") as caught:
        Dial(path).attempt()
    assert caught.value.data == {"socket": str(path), "uid": STRANGER}
    server, _ = listener.accept()
    with server:
        assert server.recv(100) == b"", "the client said something to a stranger"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a program of another user")
def test_an_impostor_at_the_default_socket_of_root_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLMOSD_SOCKET", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    os.chown(folder, STRANGER, -1)
    script = "import socket; s = socket.socket(socket.AF_UNIX); s.bind('llmosd.sock'); s.listen(); print(); input()"
    impostor = subprocess.Popen(
        ["python3", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, user=STRANGER, cwd=folder
    )
    assert impostor.stdout is not None
    impostor.stdout.readline()
    assert default_socket() == folder / "llmosd.sock"
    with pytest.raises(NotPermitted, match="served by user"):
        Client().connect()
    impostor.communicate(b"\n", timeout=60)


@pytest.mark.real_time
@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_the_reason_of_a_daemon_that_refused_before_the_hello_is_read(
    path: Path, listener: socket.socket, monkeypatch: pytest.MonkeyPatch, kind: type[Client | AsyncClient]
) -> None:
    def refused(path: Path) -> socket.socket | None:
        connection = try_connect(path)
        server, _ = listener.accept()
        server.sendall(frame(encode(Failure(0, to_wire(Busy("full", retry_after=1.0))))))
        server.close()
        return connection

    monkeypatch.setattr(dialing, "try_connect", refused)
    client = kind(path)
    with pytest.raises(Busy, match="full"):
        client.connect() if isinstance(client, Client) else await client.connect()
