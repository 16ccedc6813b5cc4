"""Sizes: of a value in bytes, for the accounts of memory, and in words, for messages that people read.

Called by whatever stores values or reports memory. It stores nothing and enforces no limit.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ipc.codec import encode, isolate


def measured(value: Any) -> tuple[Any, int]:
    """`value` so that nobody can change it, and the bytes of its encoding. Bytes are neither copied nor encoded.

    Raises `NotEncodable`.
    """
    kept = isolate(value)
    if isinstance(kept, msgspec.Raw):
        return kept, len(kept)
    if type(kept) is bytes:
        return kept, len(kept) + (2 if len(kept) < 1 << 8 else 3 if len(kept) < 1 << 16 else 5)
    return kept, len(encode(kept))


def show_size(size: float) -> str:
    """Such as "1.5 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
