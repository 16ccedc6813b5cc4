"""Explains a frame that is not a message of the client protocol: the request it belongs to, and the mistake.

A connection of the kernel calls `complaint` for each frame that it could not decode. This module never sends anything.
"""

from __future__ import annotations

import re
from typing import Any, get_args

from ipc.codec import decode
from ipc.errors import MAX_BRIEF, InvalidCall, LlmosError, MalformedFrame, UnknownCall, text_of
from ipc.foreign import bounded, shown
from ipc.syscalls import Syscall, SystemCall

REQUEST = b"\xa7request"  # the tag of a request in msgpack
START = 1 + len(REQUEST)  # where the id begins
ID_SIZES = {0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9}  # bytes of an integer in msgpack, by its first byte; others have one
CALLS = {str(kind.__struct_config__.tag): kind for kind in get_args(SystemCall)}


def complaint(payload: bytes, error: Exception) -> tuple[int, LlmosError] | None:
    """The id of the request in `payload`, and the error to answer it with; None if `payload` is not a request.

    `error` is the error that msgspec raised for the frame. The answer is `UnknownCall` for an unknown system call, and
    `InvalidCall`, which names the call and the field, for any other mistake.
    """
    number = _request_id(payload)
    if number is None:
        return None
    try:
        _, _, call, *_ = decode(payload, list[Any])
    except (MalformedFrame, ValueError):  # not msgpack, text that is not UTF-8, or values nested too deeply
        return number, InvalidCall(f"the call cannot be decoded: {bounded(text_of(error), MAX_BRIEF)}")
    name = call[0] if isinstance(call, list) and call else call
    kind = CALLS.get(name) if isinstance(name, str) else None
    if kind is None:
        return number, UnknownCall(
            f"this daemon has no system call {shown(name)}; its version may differ from the client's"
        )
    return number, InvalidCall(f"{name}: {_named_field(kind, bounded(text_of(error), MAX_BRIEF))}")


def _request_id(payload: bytes) -> int | None:
    """The id of the request in `payload`, even if the rest cannot be decoded; None if `payload` is not a request."""
    if not payload or payload[0] >> 4 != 0x9 or payload[1:START] != REQUEST:  # an array of up to 15 values
        return None
    size = ID_SIZES.get(payload[START] if len(payload) > START else 0, 1)
    try:
        number = decode(payload[START : START + size], int)
    except MalformedFrame:
        return None
    return number if number >= 1 else None


def _named_field(kind: type[Syscall], error: str) -> str:
    """The text `error` of msgspec, with the position of a field in the frame replaced by the field's name."""

    def name(match: re.Match[str]) -> str:
        place = int(match[1]) - 1
        fields = kind.__struct_fields__
        return fields[place] if place < len(fields) else match[0]

    return re.sub(r"\$\[2\]\[(\d+)\]", name, error)
