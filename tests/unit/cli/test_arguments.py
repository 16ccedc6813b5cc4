"""The arguments of `llmos run`: texts, files, standard input, and with `--json` values."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ipc.errors import BadArguments
from ipc.frames import MAX_FRAME
from llmosd.cli.arguments import ArgumentReader, body


def read(text: str, *, as_json: bool = False) -> Any:
    return ArgumentReader(as_json).positional([text])[0]


@pytest.fixture
def standard_input(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Replaces standard input."""
    return lambda data: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="ascii"))


def test_a_text_is_sent_as_it_is() -> None:
    for text in ("hello", "", "[1]", "5", "a@b", "--", " @x"):
        assert read(text) == text


def test_an_argument_may_be_the_content_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "some file.json"
    file.write_text('["é"]\n')
    assert read(f"@{file}") == '["é"]\n'
    assert ArgumentReader(as_json=False).named([f"letters=@{file}", "by=@@x"]) == {"letters": '["é"]\n', "by": "@x"}
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read("@~/some file.json") == '["é"]\n'


def test_a_text_may_begin_with_an_at_sign() -> None:
    assert read("@@home") == "@home"
    assert read("@@@home") == "@@home"
    assert read("@@") == "@"


def test_a_file_that_is_no_text_is_sent_as_bytes(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(b"\xff\x00")
    assert read(f"@{tmp_path / 'raw'}") == b"\xff\x00"
    assert read(f"@{tmp_path / 'raw'}", as_json=True) == b"\xff\x00"


def test_an_argument_that_is_no_text_is_sent_as_bytes() -> None:
    assert read(os.fsdecode(b"a\xff")) == b"a\xff"
    assert read("@" + os.fsdecode(b"@a\xff")) == b"@a\xff"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadArguments, match=r"cannot read .*none: No such file or directory"):
        read(f"@{tmp_path / 'none'}")
    with pytest.raises(BadArguments, match="Is a directory"):
        read(f"@{tmp_path}")
    with pytest.raises(BadArguments, match="argument 1 is @ without the path of a file"):
        read("@")


def test_a_file_is_no_longer_than_a_request(tmp_path: Path) -> None:
    with pytest.raises(BadArguments, match=f"/dev/zero has more than {MAX_FRAME} bytes"):
        read("@/dev/zero")
    with (tmp_path / "long").open("wb") as file:
        file.truncate(MAX_FRAME)
    assert len(read(f"@{tmp_path / 'long'}")) == MAX_FRAME


def test_standard_input_is_utf8_in_every_locale(standard_input: Callable[[bytes], None]) -> None:
    standard_input("é\n".encode())
    assert read("-") == "é\n"
    standard_input(b"\xff")
    assert read("-") == b"\xff"


def test_only_one_argument_can_be_standard_input(standard_input: Callable[[bytes], None]) -> None:
    standard_input(b"once")
    reader = ArgumentReader(as_json=False)
    assert reader.positional(["-"]) == ["once"]
    with pytest.raises(BadArguments, match="argument text is -, but argument 1 has read standard input"):
        reader.named(["text=-"])


def test_the_later_of_two_arguments_with_one_name_counts() -> None:
    assert ArgumentReader(as_json=False).named(["a=1", "a=2", "b=x=y"]) == {"a": "2", "b": "x=y"}
    with pytest.raises(BadArguments, match="-a takes NAME=VALUE, got 'a'"):
        ArgumentReader(as_json=False).named(["a"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ('"5"', "5"),
        ("null", None),
        (' {"a": [1]}', {"a": [1]}),
        ("hello world", "hello world"),
        ("nan", "nan"),
        ("", ""),
        ("(1", "(1"),
        ("@@x", "@x"),
    ],
)
def test_with_json_an_argument_that_is_json_is_a_value(text: str, value: Any) -> None:
    assert read(text, as_json=True) == value


@pytest.mark.parametrize("text", ["[1", '{"a"', '"a', ' ["a",]', "[" * 100_000])
def test_with_json_an_argument_that_only_begins_like_json_is_a_mistake(text: str) -> None:
    with pytest.raises(BadArguments, match="argument 1 begins like JSON, which --json asks for, but is not: "):
        read(text, as_json=True)


def test_with_json_a_file_is_json_as_well(tmp_path: Path) -> None:
    (tmp_path / "letters").write_text('["a"]\n')
    assert read(f"@{tmp_path / 'letters'}", as_json=True) == ["a"]


def test_the_body_of_a_message_is_read_like_an_argument(
    tmp_path: Path, standard_input: Callable[[bytes], None]
) -> None:
    assert [body(text) for text in (None, "5", '{"a": [1]}', "hi there", "[1", "@@bob", "")] == [
        None,
        5,
        {"a": [1]},
        "hi there",
        "[1",
        "@bob",
        "",
    ]
    (tmp_path / "body").write_text("[1]\n")
    assert body(f"@{tmp_path / 'body'}") == [1]
    standard_input(b"-")
    assert body("-") == "-"
    standard_input(b"\xff")
    with pytest.raises(BadArguments, match="the body is not UTF-8 text"):
        body("-")
