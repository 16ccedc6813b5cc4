"""Declared message types: what an agent accepts, checked where the message enters.

Called by the message subsystem for recipients whose program declares types.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ipc.codec import decoder
from ipc.errors import BadMessage, UndeclaredType
from kernel.process import Process


def check(recipient: Process, kind: str, body: Any) -> Any:
    """`body` as the Struct that `recipient` declares under the name `kind`; encoded ones are decoded here, once.

    Raises `UndeclaredType` and `BadMessage`.
    """
    accepts = recipient.accepts or {}
    declared = accepts.get(kind)
    if declared is None:
        names = ", ".join(sorted(accepts)) or "none"
        raise UndeclaredType(
            f"process {recipient.pid} ({recipient.program}) takes no message of type {kind!r}; it declares: {names}",
            type=kind,
            accepts=sorted(accepts),
        )
    if isinstance(body, declared):
        return body
    try:
        if isinstance(body, msgspec.Raw):
            return decoder(declared).decode(body)
        return msgspec.convert(body, declared, from_attributes=True)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadMessage(f"the body of a {kind} for process {recipient.pid} ({recipient.program}): {error}") from error
