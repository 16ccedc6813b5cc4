"""The signals of a real daemon: reload, report, stop, and an end that nothing holds up."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ipc.errors import LlmosError
from llmosd import LimitExceeded
from tests.support.daemon import RunningDaemon

GUARD = 60.0  # seconds; only a test that hangs takes as long

AGENTS = """
import _signal, asyncio, contextvars, multiprocessing, os, signal, subprocess, sys, threading, time
from llmosd import agent

@agent
async def waiting(ctx):
    await ctx.receive()

@agent
async def storing(ctx, keys: int):
    for number in range(keys):
        await ctx.memory.set(str(number), 1)

@agent
async def leaving(ctx):
    "Raises SystemExit through the loop, beside a thread for which Python's exit would wait."
    threading.Thread(target=time.sleep, args=(3600,)).start()
    contextvars.Context().run(asyncio.get_running_loop().call_soon, sys.exit, 3)  # a callback without an owner
    await asyncio.sleep(3600)

@agent
async def quick(ctx):
    await asyncio.sleep(0.2)
    return "done"

@agent
async def deaf(ctx):
    _signal.signal(int(signal.SIGTERM), int(signal.SIG_IGN))  # past the guard, which refuses `signal.signal`
    _signal.signal(int(signal.SIGHUP), int(signal.SIG_DFL))

@agent
async def counting(ctx):
    sum(range(10**12))  # holds the interpreter, and looks at no signal

@agent
async def forking(ctx):
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(3600,))
    child.start()
    child.terminate()
    await asyncio.to_thread(child.join)
    sleeper = await asyncio.create_subprocess_exec("sleep", "3600")
    sleeper.terminate()
    subprocess.run([sys.executable, "-c", BLOCKED], check=True)
    subprocess.run([sys.executable, "-c", BLOCKED], check=True, preexec_fn=os.getpid)
    checks = await asyncio.create_subprocess_exec(sys.executable, "-c", BLOCKED)
    assert await checks.wait() == 0
    return [child.exitcode, await sleeper.wait()]

BLOCKED = "import signal; assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())"
"""


def lines(daemon: RunningDaemon, event: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in daemon.log.splitlines() if line.startswith("{")]
    return [line for line in found if line["event"] == event]


RELOADED = "the settings were reloaded"
REFUSED = "the settings are wrong and were not reloaded; the old ones stay"


def test_hup_reloads_what_can_change_names_the_rest_and_ends_nothing(
    launch: Callable[..., RunningDaemon], folder: Path, eventually: Callable[..., None]
) -> None:
    daemon = launch("drain_seconds = 7.0\n")
    config = folder / "llmosd.toml"
    with daemon.client() as client:
        client.run("storing", {"keys": 3})
        config.write_text("drain_seconds = 7.0\npreload = false\n[memory]\nkeys = 2\n")
        daemon.process.send_signal(signal.SIGHUP)
        eventually(lambda: bool(lines(daemon, RELOADED)), "the settings are reloaded", timeout=GUARD)
        (line,) = lines(daemon, RELOADED)
        assert (line["changed"], line["need_a_restart"]) == (["memory.keys"], ["preload"])
        with pytest.raises(LimitExceeded):
            client.run("storing", {"keys": 3})
        config.write_text("[memory\nkeys = 9\n")
        daemon.process.send_signal(signal.SIGHUP)
        eventually(lambda: bool(lines(daemon, REFUSED)), "the file is refused", timeout=GUARD)
        assert str(config) in lines(daemon, REFUSED)[0]["error"]
        with pytest.raises(LimitExceeded):
            client.run("storing", {"keys": 3})
    assert daemon.kill(signal.SIGTERM) == 0


def test_usr1_writes_tables_and_stacks_to_the_log(
    launch: Callable[..., RunningDaemon], eventually: Callable[..., None]
) -> None:
    daemon = launch()
    with daemon.client() as client:
        task = client.submit("waiting")
        daemon.process.send_signal(signal.SIGUSR1)
        daemon.process.send_signal(signal.SIGUSR2)

        def reported() -> bool:
            return any(line["pid"] == task.pid for line in lines(daemon, "report: thread"))

        eventually(reported, "the report names the thread", timeout=GUARD)
        eventually(lambda: bool(lines(daemon, "report: thread of Linux")), "and the threads of Linux", timeout=GUARD)
        (line,) = [line for line in lines(daemon, "report: thread") if line["pid"] == task.pid]
        assert line["waits"] == "waiting for a message"
        assert "some.py" in line["stack"][0]
        assert {"journal", "llmosd log"} <= {line["name"] for line in lines(daemon, "report: thread of Linux")}
        assert client.ping(1) == 1


def test_an_error_through_the_loop_ends_the_daemon_in_order_although_a_thread_is_left(
    launch: Callable[..., RunningDaemon],
) -> None:
    daemon = launch(environment={"LLMOSD_DRAIN_SECONDS": "0.5"})
    with daemon.client() as client:
        innocent = client.submit("quick")
        with pytest.raises(LlmosError):
            client.run("leaving")
        assert innocent.result() == "done"
    assert daemon.process.wait(GUARD) == 1
    assert "SystemExit: 3 was raised through the event loop" in daemon.log
    assert not daemon.socket.exists()


def test_an_agent_cannot_take_the_signals_from_the_daemon_for_long(
    launch: Callable[..., RunningDaemon], eventually: Callable[..., None]
) -> None:
    daemon = launch()
    with daemon.client() as client:
        client.run("deaf")
        by_guard, by_loop = (
            "a signal handler of the daemon was replaced; it is restored",
            "an agent had removed the handlers of signals; they are back",
        )
        eventually(lambda: bool(lines(daemon, by_guard) or lines(daemon, by_loop)), "handlers are back", timeout=GUARD)
        assert client.ping(1) == 1
    assert daemon.kill(signal.SIGTERM) == 0


def test_quit_ends_a_daemon_whose_interpreter_an_agent_holds(
    launch: Callable[..., RunningDaemon], folder: Path, eventually: Callable[..., None]
) -> None:
    daemon = launch()
    submitted = threading.Thread(target=daemon.llmos, args=("run", "-d", "counting"))
    submitted.start()

    def busy() -> bool:
        stat = Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2].split()
        return int(stat[11]) > os.sysconf("SC_CLK_TCK") * 2  # two seconds of computing: the start takes less

    eventually(busy, "the agent computes", timeout=GUARD)
    daemon.process.send_signal(signal.SIGQUIT)
    assert daemon.process.wait(GUARD) == -signal.SIGQUIT
    submitted.join(GUARD)
    assert "counting" in (folder / "state" / "crash.log").read_text()


def test_a_signal_for_a_forked_child_ends_the_child_and_does_not_reach_the_daemon(
    launch: Callable[..., RunningDaemon],
) -> None:
    daemon = launch()
    with daemon.client() as client:
        assert client.run("forking") == [-signal.SIGTERM, -signal.SIGTERM]
        assert client.ping(1) == 1
    assert not lines(daemon, "stopping")
