"""The command line complains about mistyped commands and options in one line, and finds similar ones."""

from __future__ import annotations

import argparse
import tomllib

import pytest

import llmosd
from llmosd.cli.command_line import parser
from tests.support.paths import ROOT


def parse(*arguments: str) -> argparse.Namespace:
    return parser().parse(arguments)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["rn"], "llmos: no command rn; did you mean run?"),
        (["--socket", "x", "histroy", "--json"], "llmos: no command histroy; did you mean history?"),
        (["zzz"], "llmos: no command zzz; `llmos --help` lists the commands"),
        (["r\x1b[2Jn"], r"llmos: no command r\x1b[2Jn; `llmos --help` lists the commands"),
        (["--versoin"], "llmos: no option --versoin; did you mean --version?"),
        (["run", "ask", "--prioritty", "5", "x"], "llmos run: no option --prioritty; did you mean --priority?"),
        (["run", "ask", "--prioritty=5"], "llmos run: no option --prioritty; did you mean --priority?"),
        (["ps", "--timeout", "3"], "llmos ps: no option --timeout; `llmos ps --help` lists the options"),
        (["ps", "-z"], "llmos ps: no option -z; `llmos ps --help` lists the options"),
        (["ps", "5"], "llmos ps: there is no use for 5; `llmos ps --help` explains the command"),
        (["kill", "1", "--socket", "x", "2"], "llmos kill: there is no use for 2; `llmos kill --help` explains the"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(*arguments)
    printed = capsys.readouterr()
    assert caught.value.code == 2
    assert printed.out == ""
    assert printed.err.startswith(complaint)
    assert printed.err.count("\n") == 1


def test_a_command_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse()
    assert caught.value.code == 2
    assert "required: COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        (["x", "y"], ["x", "y"]),
        (["-a", "b=1", "x"], ["x"]),
        (["x", "-a", "b=1", "y", "--priority", "5", "z"], ["x", "y", "z"]),
        (["-d", "-5", "-", "- why"], ["-5", "-", "- why"]),
        (["x", "--", "--help", "-y"], ["x", "--help", "-y"]),
        (["-a", "b=1", "--", "--help"], ["--help"]),
    ],
)
def test_arguments_of_a_program_may_stand_before_and_after_options(arguments: list[str], given: list[str]) -> None:
    assert parse("run", "ask", *arguments).arguments == given


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--version")
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"llmos {llmosd.__version__}\n"
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == llmosd.__version__


def test_help_before_a_program_is_that_of_run(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["-h", "ask"]):
        with pytest.raises(SystemExit) as caught:
            parse("run", *arguments)
        assert caught.value.code == 0
        assert capsys.readouterr().out.startswith("usage: llmos run [")
