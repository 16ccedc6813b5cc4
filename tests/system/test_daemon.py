"""Starting and stopping a real daemon: its socket, its lock, its signals, its settings."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from ipc.codec import decode, encode
from ipc.errors import LlmosError, NoDaemon, SocketPathInvalid
from ipc.frames import FrameDecoder, frame
from ipc.protocol import VERSION, FromDaemon, Hello, Welcome
from llmosd import Client


def driver_pids(daemon):
    return [child.pid for child in psutil.Process(daemon.pid).children(recursive=True)]


def test_the_socket_is_for_its_owner_alone(daemon):
    assert stat.S_IMODE(os.stat(daemon.socket).st_mode) == 0o600


def test_the_kernel_process_imports_no_torch(daemon):
    assert "torch" not in Path(f"/proc/{daemon.pid}/maps").read_text()


def test_import_llmosd_loads_neither_kernel_nor_torch():
    code = (
        "import sys, llmosd; llmosd.Client; llmosd.agent; llmosd.Context; print([m for m in sys.modules if m in "
        "('torch', 'transformers', 'uvloop', 'asyncio') or m.split('.')[0] == 'kernel'])"
    )
    out = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_a_second_daemon_is_refused_with_the_pid_of_the_first(daemon, start):
    second = start(ready=False)
    assert second.process.wait(timeout=60) == 1
    assert f"pid {daemon.pid}" in second.log
    with daemon.client() as client:
        assert client.ping("still here") == "still here"


def test_a_stale_socket_is_taken_over_after_kill_9(daemon, start):
    with daemon.client() as client:  # its driver runs now: one that is just starting still has the socket open
        client.run("ask", {"question": "q", "max_tokens": 1})
    daemon.kill(signal.SIGKILL)
    assert daemon.socket.exists()
    with pytest.raises(NoDaemon, match="start one with"):
        daemon.client().connect()
    again = start()
    with again.client() as client:
        assert client.ping(1) == 1


def test_a_foreign_live_socket_is_not_stolen(folder, start):
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(str(folder / "llmosd.sock"))
        foreign.listen(1)
        daemon = start(ready=False)
        assert daemon.process.wait(timeout=60) == 1
        assert "another program listens" in daemon.log
    assert (folder / "llmosd.sock").exists()


def test_a_socket_path_too_long_is_named_by_both_sides(start):
    path = "/tmp/" + "x" * 120
    daemon = start("--socket", path, ready=False)
    assert daemon.process.wait(timeout=60) == 1
    assert "the limit is 107" in daemon.log
    with pytest.raises(SocketPathInvalid, match="the limit is 107"):
        Client(path).connect()


def test_a_removed_socket_file_comes_back(daemon, eventually):
    daemon.socket.unlink()

    def answers():
        with suppress(NoDaemon), daemon.client() as client:
            return client.ping(1) == 1
        return False

    eventually(answers, "the daemon listens again")
    assert daemon.kill(signal.SIGTERM) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_running_tasks(daemon, number):
    with daemon.client() as client:
        task = client.submit("ask", {"question": "short", "max_tokens": 200})
        daemon.process.send_signal(number)
        assert task.result().count("s") == 200
    assert daemon.process.wait(timeout=60) == 0
    assert not daemon.socket.exists()


def test_draining_refuses_new_tasks(launch, eventually):
    daemon = launch(environment={"LLMOSD_DRAIN_SECONDS": "60"})
    with daemon.client() as client:
        task = client.submit("listening")
        daemon.process.send_signal(signal.SIGTERM)
        eventually(lambda: '"draining"' in daemon.log, "the drain begins", 60)
        with pytest.raises(LlmosError, match="shutting down"):
            client.run("echo", {"value": 1})
        client.send(task.pid, "end")
        assert task.result(60) == "end"


def test_a_drain_is_bounded(start):
    daemon = start(environment={"LLMOSD_DRAIN_SECONDS": "0.2"})
    with daemon.client() as client:
        task = client.submit("ask", {"question": "long", "max_tokens": 8000})
        daemon.process.send_signal(signal.SIGTERM)
        with pytest.raises(LlmosError, match="shuts down"):
            task.result()
    assert daemon.process.wait(timeout=60) == 0  # the whole reply would take minutes


def test_a_client_that_does_not_read_its_stream_does_not_hold_up_the_stop(start):
    daemon = start(environment={"LLMOSD_DRAIN_SECONDS": "0.2"})
    with daemon.client() as client:
        client.submit("ask", {"question": "long", "max_tokens": 8000})  # and never reads its events
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(timeout=60) == 0  # the whole reply would take minutes


def test_a_second_signal_stops_at_once(start):
    daemon = start(environment={"LLMOSD_DRAIN_SECONDS": "60"})
    with daemon.client() as client:
        client.submit("ask", {"question": "long", "max_tokens": 8000})
        daemon.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert daemon.process.poll() is None
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(timeout=60) == 0


AGENTS = """
import asyncio, time
from llmosd import agent

@agent
async def stubborn(ctx):
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass

@agent
async def listening(ctx):
    return (await ctx.receive()).body

@agent
async def blocking(ctx):
    await asyncio.to_thread(time.sleep, 3600)
"""


@pytest.mark.parametrize("signals", [1, 2])
def test_agents_that_ignore_their_end_do_not_hold_up_the_stop(launch, signals):
    daemon = launch(environment={"LLMOSD_DRAIN_SECONDS": "0.3"})
    with daemon.client() as client:
        pids = {client.submit(name).pid for name in ("stubborn", "blocking")}
        assert {row.pid for row in client.ps()} == pids
        for _ in range(signals):
            daemon.process.send_signal(signal.SIGTERM)
            time.sleep(0.1)
        assert daemon.process.wait(timeout=60) == 0
    assert not daemon.socket.exists()


def test_drivers_end_with_the_daemon(daemon, eventually):
    eventually(lambda: driver_pids(daemon), "the driver starts")
    pids = driver_pids(daemon)
    daemon.kill(signal.SIGTERM)
    eventually(lambda: not any(psutil.pid_exists(pid) for pid in pids), "the drivers are gone")


def test_drivers_end_when_the_daemon_is_killed_with_9(daemon, eventually):
    eventually(lambda: driver_pids(daemon), "the driver starts")
    pids = driver_pids(daemon)
    daemon.kill(signal.SIGKILL)
    eventually(lambda: not any(alive(pid) for pid in pids), "the drivers are gone")


def alive(pid):
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_a_config_typo_names_file_key_and_allowed_values(folder, start):
    config = folder / "my.toml"
    config.write_text('[models.simulated]\ndriver = "simulated"\nslot = 3\n')
    daemon = start("--config", str(config), ready=False)
    assert daemon.process.wait(timeout=60) == 2
    for part in (str(config), "models.simulated.slot", "did you mean slots", "max_tokens"):
        assert part in daemon.log


def test_a_missing_model_path_is_named(start):
    daemon = start("--model", "/no/such/model.gguf", ready=False)
    assert daemon.process.wait(timeout=60) == 2
    assert "nothing at /no/such/model.gguf" in daemon.log


def test_an_agents_folder_that_is_missing_is_named(start):
    daemon = start("--agents", "/no/such/folder", ready=False)
    assert daemon.process.wait(timeout=60) == 2
    assert "/no/such/folder" in daemon.log


def test_a_foreign_folder_called_kernel_does_no_harm(folder, start):
    (folder / "kernel").mkdir()
    (folder / "kernel" / "__init__.py").write_text("raise RuntimeError('not ours')")
    old = os.getcwd()
    os.chdir(folder)
    try:
        daemon = start()
    finally:
        os.chdir(old)
    with daemon.client() as client:
        assert client.run("ask", {"question": "hi", "max_tokens": 2})


def test_a_full_backlog_is_waited_out(daemon):
    """Twelve clients connect to a stopped daemon with a short queue: once it goes on, each connects and none fails."""
    daemon.process.send_signal(signal.SIGSTOP)
    results, errors = [], []

    def connect():
        try:
            with daemon.client() as client:
                results.append(client.ping(1))
        except LlmosError as error:
            errors.append(error)

    threads = [threading.Thread(target=connect) for _ in range(12)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    daemon.process.send_signal(signal.SIGCONT)
    for thread in threads:
        thread.join(60)
    assert results == [1] * 12
    assert not errors


def test_believes_only_the_hello(folder):
    """A socket that queues connections but never accepts one is no daemon."""
    path = folder / "queue.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(5)
        client = Client(path)
        from llmosd.client import bounds

        old, bounds.CONNECT_TIMEOUT = bounds.CONNECT_TIMEOUT, 0.3
        try:
            with pytest.raises(NoDaemon, match="does not answer"):
                client.connect()
        finally:
            bounds.CONNECT_TIMEOUT = old


def test_a_backlog_of_zero_gives_a_wait_and_no_error(folder):
    """A non-blocking connect to a full queue gives EAGAIN: the client tries again until the server accepts."""
    path = folder / "queue.sock"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(path))
        listener.listen(0)
        first.connect(str(path))

        def serve():
            time.sleep(0.2)
            listener.accept()[0].close()
            connection, _ = listener.accept()
            frames = FrameDecoder()
            (hello,) = list(frames.feed(connection.recv(4096)))
            assert isinstance(decode(hello, Hello), Hello)
            connection.sendall(frame(encode(Welcome(VERSION, 1, 7))))
            connection.recv(1)
            connection.close()

        server = threading.Thread(target=serve, daemon=True)
        server.start()
        with Client(path) as client:
            assert client.pid == 7
        server.join(60)
        assert decode(encode(Welcome(VERSION, 1, 7)), FromDaemon)
