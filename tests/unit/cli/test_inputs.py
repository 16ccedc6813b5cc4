"""Files and standard input, as the commands read them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from ipc.errors import BadArguments
from llmosd.cli import inputs


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> io.BytesIO:
    data = io.BytesIO()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(data, "ascii"))  # the locale does not matter
    return data


def test_bytes_are_read_from_a_file_and_from_standard_input(stdin: io.BytesIO, tmp_path: Path) -> None:
    stdin.write("naïve\r\n".encode())
    stdin.seek(0)
    assert inputs.read_bytes("-") == "naïve\r\n".encode()
    (tmp_path / "text").write_bytes("naïve\n".encode())
    assert inputs.read_bytes(str(tmp_path / "text")) == "naïve\n".encode()


def test_lines_are_text_without_their_ends(stdin: io.BytesIO) -> None:
    stdin.write("naïve\r\n\nlast".encode())
    stdin.seek(0)
    assert [inputs.read_line() for _ in range(4)] == ["naïve", "", "last", None]


def test_a_line_that_is_not_utf_8_is_an_error_that_names_the_byte(stdin: io.BytesIO) -> None:
    stdin.write(b"ab\xff\n")
    stdin.seek(0)
    with pytest.raises(BadArguments, match=r"a line of standard input is not UTF-8 text: byte 3 is 0xff"):
        inputs.read_line()


def test_an_input_is_bounded(stdin: io.BytesIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "MAX_FRAME", 10)
    stdin.write(b"x" * 11)
    stdin.seek(0)
    with pytest.raises(BadArguments, match="more than 10 bytes"):
        inputs.read_bytes("-")


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadArguments, match=r"cannot read .*none: No such file"):
        inputs.read_bytes(str(tmp_path / "none"))
    with pytest.raises(BadArguments, match="Is a directory"):
        inputs.read_bytes(str(tmp_path))
