"""Agents that hold the loop of a real daemon."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable

import pytest

from ipc.errors import BurstExceeded, Killed, LlmosError
from ipc.syscalls import GetStats
from tests.support.daemon import RunningDaemon

AGENTS = """
import signal
import subprocess
import sys
import time

from llmosd import Context, agent
from ipc.errors import BurstExceeded


@agent
async def spin(ctx: Context) -> None:
    while True:
        pass

@agent
async def doze(ctx: Context) -> None:
    time.sleep(60)

@agent
async def stubborn(ctx: Context) -> None:
    while True:
        try:
            while True:
                pass
        except BurstExceeded as error:
            ctx.log(error.message)
            await ctx.emit("caught")

@agent
async def deaf(ctx: Context) -> None:
    while True:
        try:
            while True:
                pass
        except Exception:
            pass

@agent
async def stone_deaf(ctx: Context) -> None:
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass

@agent
async def deep(ctx: Context) -> None:
    def down() -> None:
        try:
            down()
        except RecursionError:
            while True:
                pass
    down()

@agent
async def hesitant(ctx: Context) -> int:
    end = time.monotonic() + 0.4
    while time.monotonic() < end:
        pass
    return 1

@agent
async def timers(ctx: Context) -> str:
    code = "import signal; print(signal.getitimer(signal.ITIMER_REAL), int(signal.getsignal(signal.SIGALRM)))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

@agent
async def clock(ctx: Context) -> int:
    for _ in range(1000):
        await ctx.sleep(0.001)
    return 1000
"""


@pytest.fixture
def hogs(launch: Callable[..., RunningDaemon]) -> Callable[[float], RunningDaemon]:
    """Starts a daemon with these agents and a burst of so many seconds."""
    return lambda burst: launch(f"[scheduling]\nburst = {burst}\n", "--log-format", "json")


def slow_steps(daemon: RunningDaemon) -> list[str]:
    lines = [json.loads(line) for line in daemon.log.splitlines() if line.startswith("{")]
    return [line["program"] for line in lines if line["event"] == "a thread held the loop" and line["seconds"] > 0.29]


@pytest.mark.parametrize("program", ["spin", "doze"])
def test_an_agent_that_never_awaits_ends_with_burst_exceeded_and_the_others_go_on(
    hogs: Callable[[float], RunningDaemon], program: str
) -> None:
    daemon = hogs(0.3)
    with daemon.client() as llmos:
        other = llmos.submit("clock")
        with pytest.raises(BurstExceeded, match=rf"{program} held the loop for \d+\.\d s") as caught:
            llmos.run(program)
        assert caught.value.data["limit"] == 0.3
        assert other.result() == 1000
        stats = llmos.request(GetStats())
        assert stats.errors["BurstExceeded"] == 1
        assert stats.slow_steps >= 1
    assert program in slow_steps(daemon)
    assert "clock" not in slow_steps(daemon)


def test_one_that_catches_it_and_awaits_is_broken_again_and_can_be_killed(
    hogs: Callable[[float], RunningDaemon],
) -> None:
    daemon = hogs(0.1)
    with daemon.client() as llmos:
        task = llmos.submit("stubborn")
        events = task.events()
        assert [next(events).level, next(events).value, next(events).level] == ["info", "caught", "info"]
        assert daemon.llmos("kill", str(task.pid)).returncode == 0
        with pytest.raises(Killed):
            task.result()
        assert llmos.run("clock") == 1000


@pytest.mark.parametrize("program", ["deaf", "stone_deaf"])
def test_one_that_catches_it_without_awaiting_is_killed_by_the_watchdog(
    hogs: Callable[[float], RunningDaemon], program: str
) -> None:
    daemon = hogs(0.1)
    with daemon.client() as llmos:
        with pytest.raises(Killed, match=f"{program} held the loop .* caught BurstExceeded 3 times"):
            llmos.run(program)
        assert llmos.run("clock") == 1000


def test_one_that_holds_the_loop_as_deep_as_calls_may_nest_is_interrupted(
    hogs: Callable[[float], RunningDaemon],
) -> None:
    daemon = hogs(0.1)
    with daemon.client() as llmos:
        with pytest.raises(LlmosError, match=r"deep held the loop|recursion"):
            llmos.run("deep")
        assert llmos.run("clock") == 1000


def test_a_slow_step_within_the_burst_is_logged_and_not_broken(hogs: Callable[[float], RunningDaemon]) -> None:
    daemon = hogs(0)
    with daemon.client() as llmos:
        assert llmos.run("hesitant") == 1
    assert slow_steps(daemon) == ["hesitant"]


def test_programs_that_agents_start_inherit_no_timer(hogs: Callable[[float], RunningDaemon]) -> None:
    daemon = hogs(60)  # the agent starts a process, which takes long on a busy machine
    with daemon.client() as llmos:
        assert llmos.run("timers").split() == ["(0.0,", "0.0)", "0"]


def test_a_daemon_that_was_stopped_for_a_while_breaks_nobody(hogs: Callable[[float], RunningDaemon]) -> None:
    daemon = hogs(0.2)
    with daemon.client() as llmos:
        task = llmos.submit("clock")
        for _ in range(3):
            daemon.process.send_signal(signal.SIGSTOP)
            time.sleep(0.5)
            daemon.process.send_signal(signal.SIGCONT)
        assert task.result() == 1000
