"""The help of a program shows its parameters, with types, defaults and the accepted forms."""

from __future__ import annotations

import pytest

from ipc.syscalls import ParameterInfo, ProgramInfo
from llmosd.cli.program_help import text

LETTERS = ParameterInfo("letters", "list[str]", "a JSON array of strings", "", required=True, positional=True)
COUNT = ParameterInfo("count", "int", "a whole number, such as 1", "3", required=False, positional=True)
SHARE = ParameterInfo("share", "float", "a number in %", "", required=True, positional=False)
OPTION = ParameterInfo("seed", "int | None", "a whole number or null", "None", required=False, positional=False)


@pytest.fixture(autouse=True)
def columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_the_help_names_every_parameter() -> None:
    info = ProgramInfo(
        "both", "Does 100%.", "", "both.py", doc="Does 100%.\n\nThen more.", parameters=[LETTERS, COUNT, SHARE, OPTION]
    )
    assert (
        text("./both.py", info)
        == """\
usage: llmos run [OPTIONS] ./both.py LETTERS [COUNT] -a share=...
       [-a NAME=VALUE ...]

Does 100%.

Then more.

arguments, in this order or as -a NAME=VALUE:
  letters  list[str]: a JSON array of strings
  count    int: a whole number, such as 1 (default: 3)

arguments by name, as -a NAME=VALUE:
  share    float: a number in %
  seed     int | None: a whole number or null

A text, @FILE for the content of a file, or - for standard input.
`llmos run --help` explains the options of `run`.
from both.py
"""
    )


def test_a_docstring_is_as_wide_as_the_terminal_unless_it_has_a_layout() -> None:
    doc = "One two\nthree. " + "word " * 30 + "\n\nNames:\n    a   b\n    c   d"
    lines = text("idle", ProgramInfo("idle", "", "()", "idle.py", doc=doc)).split("\n")
    assert lines[2].startswith("One two three. word")
    assert max(map(len, lines)) <= 80
    assert "\n".join(lines[6:9]) == "Names:\n    a   b\n    c   d"


def test_a_program_without_parameters_has_a_short_help() -> None:
    help_text = text("idle", ProgramInfo("idle", "", "()", "idle.py"))
    assert help_text.startswith("usage: llmos run [OPTIONS] idle\n\n")
    assert "arguments" not in help_text
