"""The listening socket: no daemon takes over a live one, and a stale one never prevents a start."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipc.daemon_lock import holder, lock_path
from ipc.errors import NoDaemon, SocketInUse, SocketPathInvalid
from ipc.unix import MAX_PATH, check_path, try_connect
from llmosd.daemon.listener import BACKLOG, SocketClaim

SYSTEM_BACKLOG = int(Path("/proc/sys/net/core/somaxconn").read_text())


@pytest.fixture
def path(folder: Path) -> Path:
    return folder / "s.sock"


def listening(claim: SocketClaim) -> socket.socket:
    """The socket of a claim, as when the daemon listens."""
    listener = claim.bind()
    listener.listen()
    claim.publish()
    return listener


@pytest.fixture
def stale(path: Path) -> Iterator[Path]:
    """The socket file of a daemon that signal 9 killed: no process listens on it."""
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    return path


def test_a_claimed_path_answers_and_is_for_its_owner_alone(path: Path) -> None:
    claim = SocketClaim(path)
    listener = listening(claim)
    mode = os.lstat(path).st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    assert stat.S_IMODE(os.lstat(f"{path}.lock").st_mode) == 0o600
    connection = try_connect(path)
    assert connection is not None
    connection.close()
    listener.close()
    claim.release()
    assert not path.exists()


def test_a_folder_that_is_missing_is_made_for_its_owner_alone(folder: Path) -> None:
    claim = SocketClaim(folder / "new" / "s.sock")
    assert stat.S_IMODE((folder / "new").stat().st_mode) == 0o700
    claim.release()


def test_the_umask_is_as_before(path: Path) -> None:
    before = os.umask(0o022)
    try:
        claim = SocketClaim(path)
        listening(claim).close()
        claim.release()
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


def test_a_stale_socket_is_taken_over(stale: Path) -> None:
    with pytest.raises(NoDaemon):
        try_connect(stale)
    claim = SocketClaim(stale)
    listener = listening(claim)
    connection = try_connect(stale)
    assert connection is not None
    connection.close()
    listener.close()
    claim.release()


def test_a_live_daemon_is_refused_by_pid_and_not_disturbed(path: Path) -> None:
    first = SocketClaim(path)
    listener = listening(first)
    with pytest.raises(SocketInUse, match=str(os.getpid())) as caught:
        SocketClaim(path)
    assert caught.value.data == {"pid": os.getpid()}
    connection = try_connect(path)
    assert connection is not None
    listener.accept()[0].close()
    connection.close()
    listener.close()
    first.release()


def test_a_path_is_free_again_after_its_release(path: Path) -> None:
    for _ in range(3):
        claim = SocketClaim(path)
        listener = listening(claim)
        listener.close()
        claim.release()


def test_a_live_socket_without_our_lock_is_somebody_else_s(path: Path) -> None:
    foreign = socket.socket(socket.AF_UNIX)
    foreign.bind(str(path))
    foreign.listen(1)
    claim = SocketClaim(path)
    with pytest.raises(SocketInUse, match="another program"):
        claim.bind()
    claim.release()
    assert path.exists(), "a socket that is not ours was removed"
    foreign.close()


def test_a_live_socket_with_a_full_backlog_is_not_taken_for_stale(path: Path) -> None:
    foreign = socket.socket(socket.AF_UNIX)
    foreign.bind(str(path))
    foreign.listen(0)
    waiting = []
    while (connection := try_connect(path)) is not None:
        waiting.append(connection)
    claim = SocketClaim(path)
    with pytest.raises(SocketInUse):
        claim.bind()
    assert path.exists()
    claim.release()
    for connection in [*waiting, foreign]:
        connection.close()


def test_a_live_socket_of_another_kind_is_not_taken_for_stale(path: Path) -> None:
    foreign = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    foreign.bind(str(path))
    claim = SocketClaim(path)
    with pytest.raises(SocketInUse):
        claim.bind()
    assert path.exists()
    claim.release()
    foreign.close()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_no_socket_is_never_removed(path: Path, kind: str) -> None:
    path.mkdir() if kind == "folder" else path.write_text("precious")
    claim = SocketClaim(path)
    with pytest.raises(SocketPathInvalid, match="no socket"):
        claim.bind()
    claim.release()
    assert path.exists()


def test_a_path_that_the_system_would_cut_is_refused_with_its_length(folder: Path) -> None:
    check_path(Path("/" + "x" * (MAX_PATH - 1)))
    with pytest.raises(SocketPathInvalid, match=str(MAX_PATH + 1)) as caught:
        SocketClaim(Path("/" + "x" * MAX_PATH))
    assert caught.value.data == {"length": MAX_PATH + 1}
    with pytest.raises(SocketPathInvalid):
        check_path(Path("/" + "ü" * 60))  # bytes count, not characters


def test_a_folder_that_cannot_be_made_is_named(folder: Path) -> None:
    (folder / "file").write_text("")
    with pytest.raises(SocketPathInvalid, match="file"):
        SocketClaim(folder / "file" / "s.sock")


def test_a_lock_that_is_a_link_is_not_followed(path: Path, folder: Path) -> None:
    victim = folder / "victim"
    victim.write_text("precious")
    Path(f"{path}.lock").symlink_to(victim)
    with pytest.raises(SocketPathInvalid):
        SocketClaim(path)
    assert victim.read_text() == "precious"


def test_a_socket_removed_by_a_cleaner_is_noticed(path: Path) -> None:
    claim = SocketClaim(path)
    listener = listening(claim)
    assert claim.exists()
    path.unlink()
    assert not claim.exists()
    listener.close()
    claim.release()


def test_connecting_where_nothing_is_says_how_to_start_a_daemon(path: Path) -> None:
    with pytest.raises(NoDaemon, match="start one with"):
        try_connect(path)


def test_the_socket_appears_when_the_daemon_listens_and_not_before(path: Path) -> None:
    claim = SocketClaim(path)
    listener = claim.bind()
    assert not path.exists()
    assert stat.S_IMODE(os.lstat(f"{path}.new").st_mode) == 0o600
    listener.listen()
    claim.publish()
    assert not Path(f"{path}.new").exists()
    connection = try_connect(path)
    assert connection is not None
    connection.close()
    listener.close()
    claim.release()
    assert not path.exists()


@pytest.mark.real_time
async def test_a_server_has_the_backlog_that_is_intended(path: Path) -> None:
    """As many clients can connect before the loop accepts one as the backlog allows, or the system."""
    claim = SocketClaim(path)
    server = await claim.serve(asyncio.Protocol)
    waiting = []
    allowed = min(BACKLOG, SYSTEM_BACKLOG, 300)  # a process may have few files
    while len(waiting) < allowed and (connection := try_connect(path)) is not None:
        waiting.append(connection)
    assert len(waiting) == allowed
    for connection in waiting:
        connection.close()
    server.close()
    claim.release()


def test_a_daemon_that_died_before_it_listened_leaves_nothing_in_the_way(path: Path) -> None:
    dead = SocketClaim(path)
    dead.bind().close()
    assert dead._lock is not None
    os.close(dead._lock)
    assert Path(f"{path}.new").exists()
    claim = SocketClaim(path)
    listening(claim).close()
    claim.release()
    assert not Path(f"{path}.new").exists()


def test_a_path_of_the_longest_length_works(folder: Path) -> None:
    path = folder / ("x" * (MAX_PATH - len(os.fsencode(folder)) - 1))
    claim = SocketClaim(path)
    listener = listening(claim)
    connection = try_connect(path)
    assert connection is not None
    connection.close()
    listener.close()
    claim.release()


def test_a_lock_tells_its_holder_without_being_disturbed(path: Path) -> None:
    lock = lock_path(path)
    assert holder(lock) is None
    claim = SocketClaim(path)
    assert holder(lock) == os.getpid()
    with pytest.raises(SocketInUse):
        SocketClaim(path)
    claim.release()
    assert lock.exists()
    assert holder(lock) is None


def test_a_folder_removed_by_a_cleaner_is_made_again_with_its_lock(folder: Path) -> None:
    path = folder / "made" / "s.sock"
    claim = SocketClaim(path)
    listening(claim).close()
    shutil.rmtree(path.parent)
    listener = listening(claim)
    assert holder(lock_path(path)) == os.getpid()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    connection = try_connect(path)
    assert connection is not None
    connection.close()
    listener.close()
    claim.release()
    assert holder(lock_path(path)) is None


def test_a_path_that_another_daemon_has_taken_meanwhile_is_left_to_it(folder: Path) -> None:
    path = folder / "made" / "s.sock"
    first = SocketClaim(path)
    listening(first).close()
    shutil.rmtree(path.parent)
    second = SocketClaim(path)
    listener = listening(second)
    with pytest.raises(SocketInUse):
        first.bind()
    connection = try_connect(path)
    assert connection is not None
    connection.close()
    listener.close()
    second.release()
    listening(first).close()
    first.release()
