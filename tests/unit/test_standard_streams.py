"""The standard streams of a command: escapes, failed writes, closed descriptors and exit codes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llmosd import standard_streams
from llmosd.standard_streams import CannotWrite, EscapedText, write_unescaped
from tests.support.paths import ROOT


def escaped(encoding: str = "utf-8") -> tuple[EscapedText, io.BytesIO]:
    data = io.BytesIO()
    return EscapedText(data, encoding, "backslashreplace", write_through=True), data


def test_text_for_people_has_no_control_characters_but_our_own() -> None:
    stream, data = escaped()
    assert stream.write("\x1b[2J\n") == 5
    print("\x9b", file=stream)
    stream.writelines(["\x07", "é"])
    write_unescaped("\r\x1b[K", stream)
    assert data.getvalue() == "\\x1b[2J\n\\x9b\n\\x07é\r\x1b[K".encode()


def test_a_character_that_the_encoding_lacks_is_an_escape() -> None:
    stream, data = escaped("ascii")
    stream.write("é├\ud800")
    assert data.getvalue() == b"\\xe9\\u251c\\ud800"


@pytest.fixture
def outcome(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Runs a guarded command with redirections of the shell, and returns its exit code and its standard error."""

    def outcome(body: str, redirections: str = "") -> tuple[int, str]:
        errors = tmp_path / "errors"
        code = (
            "import os, sys\nfrom llmosd import standard_streams as streams\n"
            f"streams.prepare_command()\ndef command():\n    {body}\n    return 0\n"
            "sys.exit(streams.guard('it', command))"
        )
        line = f'"$PYTHON" -c "$CODE" 2>{errors} {redirections}'
        environment = os.environ | {"PYTHONPATH": str(ROOT), "CODE": code, "PYTHON": sys.executable}
        ended = subprocess.run(["bash", "-c", line], env=environment, stdin=subprocess.DEVNULL, check=False)
        return ended.returncode, errors.read_text()

    return outcome


@pytest.mark.parametrize("body", ["print('x')", "print('x' * 100000)", "print('x', flush=True)"])
def test_a_full_disk_is_a_sentence_also_at_the_last_flush(outcome: Callable[..., tuple[int, str]], body: str) -> None:
    assert outcome(body, ">/dev/full") == (1, "it: cannot write the output: No space left on device\n")


def test_a_closed_output_is_a_sentence_if_anything_was_written(outcome: Callable[..., tuple[int, str]]) -> None:
    assert outcome("print('x')", ">&-") == (1, "it: cannot write the output: Bad file descriptor\n")
    assert outcome("pass", ">&-") == (0, "")


def test_errors_that_cannot_be_written_change_nothing(outcome: Callable[..., tuple[int, str]]) -> None:
    assert outcome("print('x', file=sys.stderr)", "2>&- >/dev/null") == (0, "")
    assert outcome("print('x', file=sys.stderr)", "2>/dev/full >/dev/null") == (0, "")
    assert outcome("print('x')", "<&- >&- 2>&-") == (1, "")


def test_no_file_gets_the_number_of_a_closed_stream(outcome: Callable[..., tuple[int, str]]) -> None:
    assert outcome("sys.exit(10 + os.open('/', 0))", "<&- >&- 2>&-") == (13, "")


def test_a_closed_input_cannot_be_read(outcome: Callable[..., tuple[int, str]]) -> None:
    status, errors = outcome("sys.stdin.buffer.read()", "<&-")
    assert (status, errors.splitlines()[-1]) == (1, "OSError: [Errno 9] Bad file descriptor")


def test_a_reader_that_has_gone_is_no_error(outcome: Callable[..., tuple[int, str]]) -> None:
    assert outcome("print('x' * 1000000)", "| head -c 10 >/dev/null; exit ${PIPESTATUS[0]}") == (0, "")


def test_a_command_that_exits_or_is_interrupted_has_a_code(outcome: Callable[..., tuple[int, str]]) -> None:
    assert outcome("return 7") == (7, "")
    assert outcome("sys.exit(2)") == (2, "")
    assert outcome("sys.exit()") == (0, "")
    assert outcome("sys.exit('it: no \\x1b')") == (1, "it: no \\x1b\n")
    assert outcome("raise KeyboardInterrupt") == (130, "")


def test_a_failed_write_is_an_error_of_the_operating_system() -> None:
    assert issubclass(CannotWrite, OSError)
    assert not issubclass(CannotWrite, BrokenPipeError)


def test_the_encoding_decides_which_characters_can_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", escaped("ascii")[0])
    assert not standard_streams.encodable("├─")
    monkeypatch.setattr(sys, "stdout", escaped("utf-8")[0])
    assert standard_streams.encodable("├─")
