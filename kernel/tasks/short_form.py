"""Short texts of stored values: the first characters of the arguments of a task and of its result.

Called for `llmos history`, on the journal's thread. A value may be long, so its short text needs only the beginning of
its msgpack. It may be damaged, so no function here raises an error. Nothing here reads the journal.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

MOST = 120  # characters of a short text
REST = "..."  # stands for what a short text leaves out
BEGINNING = 4096  # bytes of a value from which its short text is made
DEEPEST = 32  # levels of lists and maps that are read

MISSING = object()  # stands for the part of a value that is not in its beginning

# The codes of msgpack that are followed by a number, or by a length and as many items; the formats are of `struct`.
NUMBERS = dict(zip(range(0xCA, 0xD4), (">f", ">d", ">B", ">H", ">I", ">Q", ">b", ">h", ">i", ">q"), strict=True))
TEXTS = {0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}
BYTES = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I"}
LISTS = {0xDC: ">H", 0xDD: ">I"}
MAPS = {0xDE: ">H", 0xDF: ">I"}
CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


def arguments(call: bytes) -> str:
    """The arguments in the beginning of a stored `Submit`, such as `"Why?", max_tokens=5`."""
    fields = beginning_of(call)
    if not isinstance(fields, list):
        return ""
    named, positional = [*fields[2:4], None, None][:2]
    return _joined(_arguments(positional, named))


def result(outcome: bytes) -> tuple[int, str]:
    """The pid, and the result as text, in the beginning of a stored `Result` or `Failed`; 0 and "" if it has none."""
    event = beginning_of(outcome)
    if not isinstance(event, list) or len(event) < 3 or type(event[1]) is not int:
        return 0, ""
    kind, pid, value = event[:3]
    if kind != "result" or value is None:
        return pid, ""
    return pid, _joined([value] if isinstance(value, str) else _pieces(value))


def beginning_of(data: bytes) -> Any:
    """Decode msgpack of which `data` may be only the beginning. `MISSING` takes the place of the rest."""
    try:
        return msgspec.msgpack.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError):  # cut, or damaged
        return _BeginningReader(data).value()


class Bytes:
    """Stands for a value of bytes: a short text has only their number."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __str__(self) -> str:
        return f"<{self._length} bytes>"


class _BeginningReader:
    """Reads msgpack until `data` ends."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._ended = False

    def value(self, depth: int = 0) -> Any:
        """The next value, as far as it goes."""
        code = self._number(">B")
        if code is MISSING or depth > DEEPEST:
            self._ended = True
            return MISSING
        if code < 0x80:
            return code
        if code >= 0xE0:
            return code - 0x100
        if code in CONSTANTS:
            return CONSTANTS[code]
        if code in NUMBERS:
            return self._number(NUMBERS[code])
        if code < 0x90 or code in MAPS:
            return self._map(self._length(code & 0x0F, MAPS.get(code)), depth)
        if code < 0xA0 or code in LISTS:
            return self._items(self._length(code & 0x0F, LISTS.get(code)), depth)
        if code < 0xC0 or code in TEXTS:
            return self._text(self._length(code & 0x1F, TEXTS.get(code)))
        if code in BYTES:
            return self._bytes(self._length(0, BYTES[code]))
        self._ended = True  # an extension, or no code of msgpack
        return MISSING

    def _take(self, length: int) -> bytes:
        part = self._data[self._at : self._at + length]
        self._at += length
        self._ended = self._ended or len(part) < length
        return part

    def _number(self, form: str) -> Any:
        part = self._take(struct.calcsize(form))
        return MISSING if self._ended else struct.unpack(form, part)[0]

    def _length(self, short: int, form: str | None) -> int:
        length = short if form is None else self._number(form)
        return 0 if length is MISSING else length

    def _text(self, length: int) -> str:
        text = self._take(length).decode("utf-8", "ignore")
        return text + REST if self._ended else text

    def _bytes(self, length: int) -> Bytes:
        self._take(length)
        return Bytes(length)

    def _items(self, count: int, depth: int) -> list[Any]:
        items: list[Any] = []
        while len(items) < count and not self._ended:
            items.append(self.value(depth + 1))
        return items

    def _map(self, count: int, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(count):
            if self._ended:
                break
            name = self.value(depth + 1)
            found[name if isinstance(name, str) else _joined(_pieces(name))] = self.value(depth + 1)
        return found


def _arguments(positional: Any, named: Any) -> Iterator[str]:
    separator = ""
    for value in positional if isinstance(positional, list) else ():
        yield separator
        yield from _argument(value)
        separator = ", "
    for name, value in named.items() if isinstance(named, dict) else ():
        yield f"{separator}{name}="
        yield from _argument(value)
        separator = ", "


def _argument(value: Any) -> Iterator[str]:
    """An argument. A text is as its user typed it, in the quotes that it lacks, so that JSON in it stays readable."""
    if not isinstance(value, str):
        yield from _pieces(value)
        return
    quote = "'" if '"' in value else '"'
    yield quote
    yield value
    yield quote


def _pieces(value: Any) -> Iterator[str]:
    """`value` as JSON, in pieces, so that the reader of a long value can stop early."""
    if value is MISSING:
        yield REST
    elif isinstance(value, str):
        yield json.dumps(value[: MOST + 1], ensure_ascii=False)
    elif isinstance(value, list | tuple):
        yield "["
        for place, item in enumerate(value):
            yield ", " if place else ""
            yield from _pieces(item)
        yield "]"
    elif isinstance(value, dict):
        yield "{"
        for place, (name, item) in enumerate(value.items()):
            yield ", " if place else ""
            yield from _pieces(name)
            yield ": "
            yield from _pieces(item)
        yield "}"
    elif isinstance(value, bytes):
        yield str(Bytes(len(value)))
    elif value is None or isinstance(value, bool | int | float):
        yield json.dumps(value)
    else:
        yield str(value)


def _joined(pieces: Iterable[str]) -> str:
    """The text of `pieces`, cut to `MOST` characters."""
    text = ""
    for piece in pieces:
        text += piece[: MOST + 1]
        if len(text) > MOST:
            return text[: MOST - len(REST)] + REST
    return text
