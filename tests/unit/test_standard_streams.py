"""The standard streams of a command: escapes, failed writes, closed descriptors and exit codes."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmosd import standard_streams
from llmosd.standard_streams import CannotWrite, EscapedText, guard, write_unescaped
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


def run(code: str, *redirections: str) -> tuple[str, int]:
    """Run Python code with redirections of the shell; return the file `out` that it wrote and its exit code."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CODE": code, "PYTHON": sys.executable}
    status = os.spawnvpe(
        os.P_WAIT, "bash", ["bash", "-c", f'"$PYTHON" -c "$CODE" {" ".join(redirections)}'], environment
    )
    return "", status


@pytest.fixture
def outcome(tmp_path: Path) -> Iterator[Callable[..., tuple[int, str]]]:
    """Runs a guarded command with redirections, and returns its exit code and its standard error."""

    def outcome(body: str, redirections: str) -> tuple[int, str]:
        errors = tmp_path / "errors"
        code = (
            "import os, sys\nfrom llmosd import standard_streams as streams\n"
            f"streams.prepare_command()\ndef command():\n    {body}\n    return 0\nsys.exit(streams.guard('it', command))"
        )
        _, status = run(code, f"2>{errors}", redirections)
        return status, errors.read_text() if errors.exists() else ""

    yield outcome


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
    assert outcome("print('x' * 1000000); return 5", "| head -c 10 >/dev/null; exit ${PIPESTATUS[0]}") == (0, "")


def test_an_interrupted_command_and_one_that_exits_have_their_codes() -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    def misused() -> int:
        raise SystemExit(2)

    def refused() -> int:
        raise SystemExit("it: no")

    assert guard("it", lambda: 7) == 7
    assert guard("it", misused) == 2
    assert guard("it", refused) == 1
    standard_streams_before = os.dup(1)
    try:
        assert guard("it", interrupted) == 130
    finally:
        os.dup2(standard_streams_before, 1)
        os.close(standard_streams_before)


def test_a_failed_write_is_an_error_of_the_operating_system() -> None:
    assert issubclass(CannotWrite, OSError)
    assert not issubclass(CannotWrite, BrokenPipeError)


def test_the_encoding_decides_which_characters_can_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", escaped("ascii")[0])
    assert not standard_streams.encodable("├─")
    monkeypatch.setattr(sys, "stdout", escaped("utf-8")[0])
    assert standard_streams.encodable("├─")
