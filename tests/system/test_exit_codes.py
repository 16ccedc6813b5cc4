"""Exit codes and timeouts of `llmos` against a real daemon, also one that is stopped in the middle of its work."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from llmosd import NoDaemon, TimedOut
from llmosd.client import bounds
from tests.support.daemon import RunningDaemon

AGENTS = """
from llmosd import Context, DeadlineExceeded, InvalidCall, NoDaemon, TimedOut, UnknownProgram, agent

ERRORS = {kind.__name__: kind for kind in (DeadlineExceeded, InvalidCall, NoDaemon, TimedOut, UnknownProgram)}

@agent
async def raising(ctx: Context, name: str) -> None:
    raise ERRORS[name]("on purpose")

@agent
async def spawning(ctx: Context) -> None:
    await ctx.spawn("nothing of that name")

@agent
async def sleeping(ctx: Context) -> None:
    await ctx.sleep(3600)

@agent
async def dying(ctx: Context) -> None:
    await ctx.receive()
    raise InvalidCall("on purpose")
"""


@pytest.fixture
def daemon(launch) -> RunningDaemon:
    return launch()


@contextmanager
def stopped(daemon: RunningDaemon) -> Iterator[None]:
    """The daemon does nothing in the `with` block."""
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        daemon.process.send_signal(signal.SIGCONT)


def submitted(daemon: RunningDaemon, *arguments: str) -> list[str]:
    """The id and the pid of a detached task."""
    return daemon.llmos("run", "-d", *arguments).stdout.split()


@pytest.mark.parametrize("name", ["DeadlineExceeded", "InvalidCall", "NoDaemon", "TimedOut", "UnknownProgram"])
def test_an_agent_that_raises_an_error_of_ours_failed(daemon, name):
    for flags in ((), ("--timeout", "60"), ("--json",)):
        out = daemon.llmos("run", "raising", name, *flags)
        assert out.returncode == 1
        assert re.search(rf"llmos: {name}: some\.py:\d+: on purpose$", out.stderr, re.MULTILINE)


def test_the_same_error_is_misuse_if_the_command_made_the_mistake(daemon):
    assert daemon.llmos("run", "nothing of that name").returncode == 2
    inside = daemon.llmos("run", "spawning")
    assert (inside.returncode, "UnknownProgram" in inside.stderr) == (1, True)


def test_a_process_that_failed_gives_1_to_wait_and_attach_as_well(daemon):
    task, pid = submitted(daemon, "raising", "TimedOut")
    assert daemon.llmos("wait", pid, "--timeout", "60").returncode == 1
    assert daemon.llmos("attach", task, "--timeout", "60").returncode == 1
    assert daemon.llmos("wait", "999999").returncode == 2
    assert daemon.llmos("attach", "no id").returncode == 2


def test_a_call_to_a_process_that_fails_is_no_misuse(daemon):
    submitted(daemon, "dying", "--name", "victim")
    out = daemon.llmos("call", "victim", "1")
    assert (out.returncode, "ended before it replied" in out.stderr) == (1, True)
    assert daemon.llmos("call", "victim", "1").returncode == 2


def test_an_expired_deadline_is_a_failure_and_says_so(daemon):
    out = daemon.llmos("run", "sleeping", "--deadline", "0.2", "--timeout", "60")
    assert out.returncode == 1
    assert "the deadline of 0.2 s passed, so the daemon ended the process" in out.stderr


def test_a_timeout_that_passed_gives_124_and_names_what_did_not_happen(daemon):
    task, pid = submitted(daemon, "sleeping")
    for arguments, complaint in (
        (("run", "sleeping"), "no result within 0.2 s, so the task ends; use --detach"),
        (("attach", task), "no result within 0.2 s; the task continues"),
        (("wait", pid), "the process did not end within 0.2 s; it continues"),
        (("call", pid, "1"), "no reply within 0.2 s"),
    ):
        out = daemon.llmos(*arguments, "--timeout", "0.2")
        assert (out.returncode, complaint in out.stderr) == (124, True), out.stderr


def test_a_timeout_holds_while_the_daemon_is_stopped(daemon):
    task, pid = submitted(daemon, "sleeping")
    with stopped(daemon):
        for arguments in (("run", "sleeping"), ("run", "-d", "sleeping"), ("attach", task), ("wait", pid)):
            assert daemon.llmos(*arguments, "--timeout", "0.2").returncode == 124
        assert daemon.llmos("call", pid, "1", "--timeout", "0.2").returncode == 124
    assert daemon.llmos("ps").returncode == 0


def test_the_timeout_of_a_run_covers_a_submission_that_is_not_answered(daemon, eventually):
    with daemon.client() as client:
        with stopped(daemon), pytest.raises(TimedOut, match=r"sleeping gave no result within 0\.2 s"):
            client.run("sleeping", timeout=0.2)
        assert client.ping() is None
        eventually(lambda: not client.ps(), "the task that was given up has ended")


def test_a_stopped_daemon_does_not_hold_up_a_call_without_a_timeout(daemon, monkeypatch):
    monkeypatch.setattr(bounds, "SECONDS", dict.fromkeys(bounds.ANSWERED_AT_ONCE, 0.2))
    with daemon.client() as client:
        with stopped(daemon), pytest.raises(NoDaemon, match="does not answer to Ps"):
            client.ps()
        assert client.ps() == []


def test_a_detached_run_prints_the_id_and_the_pid_on_one_line(daemon):
    out = daemon.llmos("run", "-d", "sleeping")
    task, pid = out.stdout.split()
    assert out.stdout == f"{task} {pid}\n"
    assert f"`llmos attach {task}`" in out.stderr
    with daemon.client() as client:
        assert client.attach(task).pid == int(pid)
