"""Texts of the command line, of files and of standard input."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from ipc.errors import BadArguments
from llmosd.cli import values

LATIN = "caf\udce9"  # the bytes of "café" in Latin-1, as Python passes them in an argument


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> io.BytesIO:
    data = io.BytesIO()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(data, "ascii"))  # the locale does not matter
    return data


def test_text_is_read_from_a_file_and_from_standard_input(stdin: io.BytesIO, tmp_path: Path) -> None:
    stdin.write("naïve\r\n".encode())
    stdin.seek(0)
    assert values.read_text("-") == "naïve\r\n"
    (tmp_path / "text").write_bytes("naïve\n".encode())
    assert values.read_text(str(tmp_path / "text")) == "naïve\n"


def test_text_that_is_not_utf_8_is_an_error_that_names_the_byte(stdin: io.BytesIO, tmp_path: Path) -> None:
    stdin.write(b"ab\xff")
    stdin.seek(0)
    with pytest.raises(BadArguments, match=r"standard input is not UTF-8 text: byte 3 is 0xff"):
        values.read_text("-")
    (tmp_path / "text").write_bytes(b"\xc3")
    with pytest.raises(BadArguments, match=r"text is not UTF-8 text: byte 1 is 0xc3"):
        values.read_text(str(tmp_path / "text"))


def test_a_text_is_bounded(stdin: io.BytesIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "MAX_FRAME", 10)
    stdin.write(b"x" * 11)
    stdin.seek(0)
    with pytest.raises(BadArguments, match="more than 10 bytes"):
        values.read_text("-")


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadArguments, match=r"cannot read .*none: No such file"):
        values.read_text(str(tmp_path / "none"))
    with pytest.raises(BadArguments, match="Is a directory"):
        values.read_text(str(tmp_path))


def test_the_argument_that_is_not_text_is_named() -> None:
    assert values.not_text(["run", "echo", "café"]) is None
    assert values.not_text(["run", LATIN]) == "the argument caf\\xe9 is not UTF-8 text"


def test_text_that_the_locale_cannot_decode_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsencode", lambda text: text.encode("ascii", "surrogateescape"))
    reason = values.not_text(["caf\udcc3\udca9"])
    assert reason == "the locale is not UTF-8, but the argument café is; set LC_ALL=C.UTF-8"


def test_a_message_that_is_not_text_stays_as_it_is() -> None:
    assert values.body(LATIN) == LATIN  # and the client then refuses to send it
    assert values.body('{"n": 1}') == {"n": 1}
    assert values.body("[" * 5000) == "[" * 5000
