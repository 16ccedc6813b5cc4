"""Any value as one JSON document, also where JSON has no form for it.

Called by `llmosd.cli.show` for results, messages and listings. It never prints.

NaN and infinity are the strings "NaN", "Infinity" and "-Infinity", because JSON has no such numbers. Bytes are base64.
Keys that are no strings become strings: a number as it is written, any other key as its JSON. An extension type of
msgpack is an object with its `code` and its `data`.
"""

from __future__ import annotations

import math
import re
from typing import Any

import msgspec

from ipc.codec import ENCODER, UNENCODABLE
from ipc.errors import NotEncodable
from llmosd.printable import printable_json

# A number of msgpack that is not finite: msgspec writes every float with 64 bits, and all bits of its exponent are set.
# Other bytes may match as well; then the value takes the slow way for nothing.
_NOT_FINITE = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]")


def json_text(value: Any, *, ascii_only: bool = False) -> str:
    """`value` as JSON on one line, without any character that could control a terminal. Raises `NotEncodable`."""
    try:
        text = _encoded(value).decode()
    except UNENCODABLE as error:
        raise NotEncodable(f"cannot print a {type(value).__name__} as JSON: {error}") from None
    return printable_json(text, ascii_only=ascii_only)


def _encoded(value: Any) -> bytes:
    try:
        text = msgspec.json.encode(value)
        if not _NOT_FINITE.search(ENCODER.encode(value)):
            return text
    except UNENCODABLE:
        pass
    return msgspec.json.encode(_json_value(msgspec.to_builtins(value, enc_hook=_extension)))


def _extension(value: Any) -> Any:
    if isinstance(value, msgspec.msgpack.Ext):
        return {"code": value.code, "data": bytes(value.data)}
    raise NotImplementedError(f"a {type(value).__name__} has no form in JSON")


def _json_value(value: Any) -> Any:
    """A value of strings, numbers, lists and dicts that msgspec encodes as described above."""
    if isinstance(value, float):
        return value if math.isfinite(value) else _number_name(value)
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()  # half a surrogate, as in the name of a file
    if isinstance(value, dict):
        return {_key(key): _json_value(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(part) for part in value]
    return value


def _key(key: Any) -> str:
    text: str = _json_value(key) if isinstance(key, str) else _encoded(key).decode()
    return text[1:-1] if not isinstance(key, str) and text.startswith('"') else text


def _number_name(number: float) -> str:
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
