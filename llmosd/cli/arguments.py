"""Reads arguments of programs and bodies of messages: texts, files and standard input, and with `--json` values.

Called by the commands. The daemon parses the arguments, because it knows the types of the parameters. This module only
parses JSON: that of bodies, and that which `--json` asks for.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import msgspec

from ipc.errors import BadArguments
from llmosd.cli import inputs, values

JSON_BEGINS = ("[", "{", '"')


class ArgumentReader:
    """Reads the arguments of one command. `as_json`: an argument that is JSON stands for its value."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._input_of: str | None = None  # the argument that has read standard input

    def positional(self, texts: Iterable[str]) -> list[Any]:
        """The arguments by position. Raises `BadArguments`."""
        return [self._value(f"argument {number}", text) for number, text in enumerate(texts, 1)]

    def named(self, texts: Iterable[str]) -> dict[str, Any]:
        """The arguments by name, from texts such as question=Why. Raises `BadArguments`."""
        pairs = map(values.named_argument, texts)
        return {name: self._value(f"argument {name}", text) for name, text in pairs}

    def _value(self, place: str, text: str) -> Any:
        found = self._content(place, text)
        if not self._as_json or isinstance(found, bytes):
            return found
        try:
            return msgspec.json.decode(found)
        except (msgspec.DecodeError, RecursionError) as error:
            if found.lstrip().startswith(JSON_BEGINS):
                raise BadArguments(f"{place} begins like JSON, which --json asks for, but is not: {error}") from None
            return found

    def _content(self, place: str, text: str) -> str | bytes:
        if text == "-":
            if self._input_of is not None:
                raise BadArguments(f"{place} is -, but {self._input_of} has read standard input, which ends only once")
            self._input_of = place
        return content(place, text)


def body(text: str | None) -> Any:
    """Read the body of a message: JSON, or else the text itself. Raises `BadArguments`."""
    if text is None:
        return None
    found = content("the body", text)
    if isinstance(found, bytes):
        raise BadArguments("the body is not UTF-8 text; convert it first, for example with iconv or base64")
    try:
        return msgspec.json.decode(found)
    except (msgspec.DecodeError, RecursionError):
        return found


def content(place: str, text: str) -> str | bytes:
    """The text that `text` stands for: @FILE for the content of a file, - for standard input, or itself.

    If it is not UTF-8, the answer is bytes. `place` describes the argument in the error. Raises `BadArguments`.
    """
    if text == "@":
        raise BadArguments(f"{place} is @ without the path of a file; @@ stands for the text @")
    if text == "-" or (text.startswith("@") and not text.startswith("@@")):
        data = inputs.read_bytes(text if text == "-" else os.path.expanduser(text[1:]))
    else:
        text = text[1:] if text.startswith("@@") else text
        try:
            text.encode()
        except UnicodeEncodeError:  # an argument that is not text in the locale
            data = os.fsencode(text)
        else:
            return text
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data
