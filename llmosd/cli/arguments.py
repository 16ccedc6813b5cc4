"""Reads the arguments of `llmos run`: texts, files and standard input, and with `--json` values.

Called by the command. The daemon parses the texts, because it knows the types of the parameters; this module only
parses JSON, when `--json` asks for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import msgspec

from ipc.errors import BadArguments
from llmosd.cli import values

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
        content = self._content(place, text)
        if not self._as_json or isinstance(content, bytes):
            return content
        try:
            return msgspec.json.decode(content)
        except (msgspec.DecodeError, RecursionError) as error:
            if content.lstrip().startswith(JSON_BEGINS):
                raise BadArguments(f"{place} begins like JSON, which --json asks for, but is not: {error}") from None
            return content

    def _content(self, place: str, text: str) -> str | bytes:
        """The text that an argument stands for. Bytes, if it is not UTF-8: the daemon knows whether they fit."""
        if text.startswith("@@"):
            text = text[1:]
        elif text.startswith("@"):
            if text == "@":
                raise BadArguments(f"{place} is @ without the path of a file; @@ stands for the text @")
            return _text_or_bytes(values.read_bytes(os.path.expanduser(text[1:])))
        elif text == "-":
            if self._input_of is not None:
                raise BadArguments(f"{place} is -, but {self._input_of} has read standard input, which ends only once")
            self._input_of = place
            return _text_or_bytes(values.read_bytes("-"))
        try:
            text.encode()
        except UnicodeEncodeError:  # an argument that is not text in the locale
            return _text_or_bytes(os.fsencode(text))
        return text


def _text_or_bytes(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data
