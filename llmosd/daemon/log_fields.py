"""Bounds the fields of a log line: agents, clients and files choose many of the texts and values in them.

A processor of the log calls it for every line, before the line is formatted. A line consists of plain values
afterwards, so that its formatting cannot fail and its length is bounded. It never raises, whatever a value does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import islice
from typing import Any

from ipc.errors import text_of
from kernel.lib.failures import bounded

MAX_FIELD = 4_096  # characters of one field
MAX_TRACEBACK = 16_384  # characters of a traceback
MAX_LINE = 32_768  # characters of all fields together
MAX_FIELDS = 64
MAX_NAME = 100  # characters of the name of a field
MAX_ITEMS = 100  # of a list or a table
MAX_DEPTH = 4  # of lists and tables
MAX_BITS = 256  # of a whole number
MAX_INT = 1 << 63  # smaller ones are short

TRACEBACKS = frozenset({"exception", "traceback"})
FIRST = ("event", "level", "timestamp", "logger", "pid", "program")  # they get their share before the others


def bound_fields(_logger: Any, _method: str, fields: Any) -> Any:
    """`fields` with plain values of bounded length."""
    if _are_plain(fields):
        return fields
    names = list(fields)
    if len(names) > MAX_FIELDS:
        names = [name for name in FIRST if name in fields] + [name for name in names if name not in FIRST]
    names, omitted = names[:MAX_FIELDS], len(names) - MAX_FIELDS
    left = MAX_LINE
    values: dict[Any, Any] = {}
    for name in sorted(names, key=lambda name: name not in FIRST):
        most = MAX_TRACEBACK if name in TRACEBACKS else MAX_FIELD
        values[name] = _plain(fields[name], min(left, most), 0)
        left = max(left - _size(values[name]), 0)
    kept = {_text(name, MAX_NAME): values[name] for name in names}
    return kept if omitted <= 0 else kept | {"omitted_fields": omitted}


def _are_plain(fields: Any) -> bool:
    """Whether the fields are plain and short already, as in nearly all lines."""
    size = 0
    for name, value in fields.items():
        kind = type(value)
        if type(name) is not str or len(name) > MAX_NAME:
            return False
        if kind is str:
            if len(value) > MAX_FIELD or not value.isascii():
                return False
            size += len(value)
        elif (kind is not int or not -MAX_INT < value < MAX_INT) and value is not None and kind is not bool:
            return False
    return len(fields) <= MAX_FIELDS and size <= MAX_LINE


def _plain(value: Any, most: int, depth: int) -> Any:
    """`value` as a text, number, list or table that takes about `most` characters."""
    kind = type(value)
    if kind is str:
        return value if len(value) <= most and value.isascii() else bounded(value, most)
    if value is None or kind is bool:
        return value
    if kind is int:
        return value if value.bit_length() <= MAX_BITS else f"a number of {value.bit_length()} bits"
    if kind is float:
        return value if math.isfinite(value) else str(value)
    if kind in (list, tuple, set, frozenset, dict) and depth < MAX_DEPTH:
        return _plain_container(value, most, depth)
    return _text(value, most)


def _plain_container(value: Any, most: int, depth: int) -> Any:
    left = most
    items: list[Any] = []
    for item in islice(value.items() if isinstance(value, dict) else value, MAX_ITEMS):
        if left <= 0:
            break
        if isinstance(value, dict):
            name = _text(item[0], MAX_NAME)
            items.append((name, _plain(item[1], left, depth + 1)))
            left -= len(name) + _size(items[-1][1])
        else:
            items.append(_plain(item, left, depth + 1))
            left -= _size(items[-1])
    if omitted := len(value) - len(items):
        items.append(("…", f"{omitted} more") if isinstance(value, dict) else f"… ({omitted} more)")
    return dict(items) if isinstance(value, dict) else items


def _text(value: Any, most: int) -> str:
    """The text of `value`. Computing it may run code of an agent."""
    try:
        if type(value) in (bytes, bytearray):
            value = value[:most]
        text = text_of(value) if isinstance(value, BaseException) else str(value)
        return bounded(str.__str__(text), most)
    except BaseException as error:
        return f"<{type(value).__name__[:MAX_NAME]} without a text: {type(error).__name__[:MAX_NAME]}>"


def _size(value: Any) -> int:
    """About the characters that a plain value takes."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(len(name) + _size(item) for name, item in value.items())
    if isinstance(value, list):
        return sum(map(_size, value)) + len(value)
    return 8
