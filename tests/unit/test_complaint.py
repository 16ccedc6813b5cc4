"""The text of an error on the terminal, and the lines of a log."""

from __future__ import annotations

import io
import re

from ipc.errors import AgentFailed, InvalidCall, ToolFailed
from ipc.messages import Log
from llmosd.cli import show
from llmosd.cli.command_line import complaint


def test_an_error_with_a_crash_report_names_the_report_instead_of_the_traceback() -> None:
    error = AgentFailed("a.py:3: a: ValueError: no", place="/home/me/a.py:3", traceback="Traceback ...", crash=12)
    assert complaint(error) == "a.py:3: a: ValueError: no\nllmos: see `llmos crashes 12` for the whole report"


def test_an_error_of_our_own_gets_its_place_in_front() -> None:
    error = InvalidCall("no such thing", place="/home/me/a.py:3", traceback="Traceback ...", crash=12)
    assert complaint(error).splitlines()[0] == "a.py:3: no such thing"


def test_an_error_without_a_crash_report_shows_its_traceback() -> None:
    assert complaint(ToolFailed("no", traceback="Traceback ...")) == "no\nTraceback ..."
    assert complaint(InvalidCall("no")) == "no"


def test_each_line_of_a_log_entry_names_its_process_and_controls_no_terminal() -> None:
    fields = {"logger": "library", "traceback": "Traceback ...\nValueError: \x1b[31m"}
    out = io.StringIO()
    show.log_line(Log(7, 0.0, "error", "first\nsecond \x1b]0;title\x07", fields), as_json=False, file=out)
    show.log_line(Log(7, 0.0, "stdout", "", {}), as_json=False, file=out)
    assert [re.sub(r"^[\d:]{8} ", "", line) for line in out.getvalue().splitlines()] == [
        "[7] error: first logger='library'",
        "[7] error: second \\x1b]0;title\\x07",
        "[7] error: Traceback ...",
        "[7] error: ValueError: \\x1b[31m",
        "[7] stdout:",
    ]
