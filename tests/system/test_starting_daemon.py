"""The first moments of a daemon: clients wait until it listens, and it does not start on what others can change."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from ipc.errors import NoDaemon
from ipc.unix import try_connect
from llmosd import Client
from tests.support.daemon import SCRIPTS

ROUNDS = [pytest.param(2), pytest.param(20, marks=pytest.mark.soak(short=False))]
START_AND_RUN = """
"$BIN/llmosd" --model simulated --socket "$LLMOSD_SOCKET" --state "$STATE" >"$LOG" 2>&1 &
echo $!
"$BIN/llmos" run echo 1 --timeout 60 >/dev/null
"""
HANG_GUARD = 60.0


@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_command_finds_a_daemon_that_was_started_just_before(folder: Path, rounds: int) -> None:
    for number in range(rounds):
        socket, state, log = folder / f"{number}.sock", folder / f"state-{number}", folder / f"log-{number}"
        places = {"LLMOSD_SOCKET": str(socket), "STATE": str(state), "LOG": str(log), "BIN": str(SCRIPTS)}
        run = subprocess.run(
            ["sh", "-c", START_AND_RUN],
            check=False,
            env=os.environ | places,
            capture_output=True,
            text=True,
            timeout=HANG_GUARD,
        )
        try:
            assert (run.returncode, run.stderr) == (0, ""), log.read_text()
            with Client(socket) as client:
                client.shutdown()
                client.wait_until_closed(HANG_GUARD)
        finally:
            with suppress(ProcessLookupError):
                os.kill(int(run.stdout), signal.SIGTERM)


def test_of_two_daemons_that_start_together_one_serves_and_the_other_names_it(start, eventually) -> None:
    first, second = start(ready=False), start(ready=False)
    ended = lambda: [daemon for daemon in (first, second) if daemon.process.poll() is not None]  # noqa: E731
    eventually(ended, "one of the daemons ends", HANG_GUARD)
    (loser,) = ended()
    winner = second if loser is first else first
    assert loser.process.returncode == 1
    winner.wait_until_ready()
    assert f"a daemon with pid {winner.pid} already serves" in loser.log
    assert winner.process.poll() is None


def test_a_stopped_daemon_takes_as_many_connections_as_its_backlog_allows(daemon) -> None:
    allowed = min(1024, int(Path("/proc/sys/net/core/somaxconn").read_text()))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    waiting = []
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        while len(waiting) < allowed and (connection := try_connect(daemon.socket)) is not None:
            waiting.append(connection)
    finally:
        daemon.process.send_signal(signal.SIGCONT)
        for connection in waiting:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(waiting) == allowed
    with daemon.client() as client:
        assert client.ping("hello") == "hello"


def test_a_removed_folder_of_the_socket_comes_back(folder: Path, start, eventually) -> None:
    """Programs that clean temporary folders remove whole folders, too."""
    socket = folder / "run" / "s.sock"
    daemon = start("--socket", str(socket), ready=False)

    def answers() -> bool:
        with suppress(NoDaemon), Client(socket) as client:
            return client.ping(1) == 1
        return False

    eventually(answers, "the daemon listens", HANG_GUARD)  # a process that was just made has no command line yet
    shutil.rmtree(socket.parent)
    eventually(answers, "the daemon listens again", HANG_GUARD)
    assert "the socket file was removed" in daemon.log


@pytest.mark.parametrize(("name", "code", "hint"), [("state", 2, "with --state"), ("socket", 1, "with --socket")])
def test_a_folder_that_everyone_can_write_to_stops_the_start(
    folder: Path, start, name: str, code: int, hint: str
) -> None:
    (folder / name).mkdir()
    (folder / name).chmod(0o777)
    place = folder / name / "s.sock" if name == "socket" else folder / name
    daemon = start(f"--{name}", str(place), ready=False)
    assert daemon.process.wait(HANG_GUARD) == code
    assert daemon.log.startswith(f"llmosd: {name}: every user can write to {folder / name} (owner ")
    assert f"`chmod o-w {folder / name}`" in daemon.log
    assert hint in daemon.log


@pytest.mark.parametrize("name", ["crash.log", "journal.sqlite"])
def test_a_link_among_the_files_of_the_daemon_stops_the_start(folder: Path, start, name: str) -> None:
    (folder / "state").mkdir()
    (folder / "state" / name).symlink_to(folder / "victim")
    daemon = start(ready=False)
    assert daemon.process.wait(HANG_GUARD) in (1, 2)
    assert "it is a symbolic link" in daemon.log
    assert not (folder / "victim").exists()
