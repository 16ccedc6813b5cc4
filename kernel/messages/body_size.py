"""The sizes of message bodies: for the listing of messages, and to bound the bytes in mailboxes.

Used by all parts of this room. A body that is text, `bytes` or encoded is measured exactly. A frozen Struct passes by
reference and is estimated, with bounded work. This module never encodes a body.
"""

from __future__ import annotations

from typing import Any

import msgspec

SMALL_BODY = 1024  # bytes; smaller bodies are counted by their number only, so that short messages cost nothing extra
MOST_PARTS = 256  # parts of a Struct that are looked at; further ones are taken for small
PART = 64  # bytes for each element of a container and each field


def size(body: object) -> int:
    """The bytes of a body that is text, `bytes` or an encoded value; 0 for other values, which pass by reference."""
    if isinstance(body, str):
        return len(body) if body.isascii() else len(body.encode())
    return memoryview(body).nbytes if isinstance(body, bytes | msgspec.Raw) else 0


def counted_size(body: object) -> int:
    """The bytes that a mailbox counts for `body`: 0 if it is small."""
    length = _estimate(body) if isinstance(body, msgspec.Struct) else size(body)
    return length if length > SMALL_BODY else 0


def _estimate(body: msgspec.Struct) -> int:
    total, parts = 0, 0
    rest: list[Any] = [body]
    while rest and parts < MOST_PARTS:
        part = rest.pop()
        parts += 1
        if isinstance(part, str | bytes | bytearray | msgspec.Raw):
            total += len(part) if isinstance(part, str | bytes | bytearray) else memoryview(part).nbytes
        elif isinstance(part, msgspec.Struct):
            total += PART * len(part.__struct_fields__)
            rest += [getattr(part, name) for name in part.__struct_fields__]
        elif isinstance(part, list | tuple | set | frozenset | dict):
            total += PART * len(part)
            inside = part.values() if isinstance(part, dict) else part
            rest += [item for item, _ in zip(inside, range(MOST_PARTS), strict=False)]
    return total
