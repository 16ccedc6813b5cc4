"""Exit codes follow the origin of an error: an error that ended an agent is 1, and the same error of a call is not."""

from __future__ import annotations

import pytest

from ipc.errors import (
    AgentFailed,
    BadArguments,
    Busy,
    ConnectionLost,
    DeadlineExceeded,
    InvalidPolicy,
    LlmosError,
    NoDaemon,
    NotEncodable,
    NotPermitted,
    SocketPathInvalid,
    TimedOut,
    UnknownProcess,
    UnknownProgram,
    to_wire,
)
from ipc.messages import Failed
from ipc.syscalls import ExitStatus
from llmosd import cli
from llmosd.cli.command_line import FAILED, NO_DAEMON, TIMED_OUT, USAGE, exit_code, main
from llmosd.client.blocking import Client
from llmosd.client.cursor import final_value
from llmosd.client.methods import _outcome

OURS = [kind for kind in LlmosError.registry.values() if kind.__module__ == "ipc.errors"]


@pytest.mark.parametrize("timeout", [None, 5.0])
@pytest.mark.parametrize("kind", OURS, ids=[kind.__name__ for kind in OURS])
def test_every_error_that_ended_an_agent_gives_1(kind: type[LlmosError], timeout: float | None) -> None:
    error = to_wire(kind("on purpose"))
    with pytest.raises(kind) as of_a_task:
        final_value(Failed(7, error))
    with pytest.raises(kind) as of_a_process:
        _outcome(ExitStatus(7, "p", "failed", None, error))
    assert exit_code(of_a_task.value, timeout) == exit_code(of_a_process.value, timeout) == FAILED


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UnknownProgram("no such program"), USAGE),
        (BadArguments("no such argument"), USAGE),
        (UnknownProcess("process 7 never existed"), USAGE),
        (InvalidPolicy("no such policy"), USAGE),
        (NoDaemon("nobody"), NO_DAEMON),
        (ConnectionLost("gone"), NO_DAEMON),
        (SocketPathInvalid("too long"), NO_DAEMON),
        (Busy("later"), FAILED),
        (NotPermitted("no"), FAILED),
        (AgentFailed("the file cannot be imported"), FAILED),
        (DeadlineExceeded("late"), FAILED),
        (TimedOut("of the daemon's own"), FAILED),
        (UnknownProcess("process 7 ended before it replied", ended=True), FAILED),
    ],
)
def test_the_error_of_a_call_counts_by_its_class(error: LlmosError, code: int) -> None:
    assert exit_code(error, None) == code


def test_only_the_timeout_of_the_command_gives_124() -> None:
    assert exit_code(TimedOut("no answer"), 5.0) == TIMED_OUT
    assert exit_code(NoDaemon("nobody"), 5.0) == NO_DAEMON


def test_the_result_of_an_agent_that_cannot_be_sent_is_not_misuse_of_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = to_wire(NotEncodable("the result of echo"))

    class Fake(Client):
        def connect(self) -> None:
            final_value(Failed(7, error))

    monkeypatch.setattr("llmosd.cli.command_line.Client", Fake)
    assert main(["run", "echo", str(2**64)]) == FAILED
    assert "the result of echo" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["-1", "nan", "soon"])
@pytest.mark.parametrize("option", ["--timeout", "--deadline"])
def test_a_time_that_is_none_is_misuse(option: str, seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "echo", option, seconds]) == USAGE
    assert f"{option}: invalid seconds value: '{seconds}'" in capsys.readouterr().err


def test_ctrl_c_while_the_command_is_imported_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "prepare_command", lambda: None)
    monkeypatch.setattr(cli.gc, "disable", lambda: None)
    monkeypatch.setattr(cli, "_import_msgspec_without_extras", interrupted)
    assert cli.main() == 130
