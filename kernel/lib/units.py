"""Sizes: measures values in bytes for memory quotas, and formats sizes as text for people.

Called by the parts of the kernel that store values or report memory. This module never enforces a limit.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ipc.codec import encode, isolate


def isolate_and_measure(value: Any) -> tuple[Any, int]:
    """Isolate `value` (`ipc.codec.isolate`), and return the isolated value and the size of its encoding in bytes.

    A `bytes` value is neither copied nor encoded. Raises `NotEncodable`.
    """
    isolated = isolate(value)
    if isinstance(isolated, msgspec.Raw):
        return isolated, len(isolated)
    if type(isolated) is bytes:
        return isolated, len(isolated) + (2 if len(isolated) < 1 << 8 else 3 if len(isolated) < 1 << 16 else 5)
    return isolated, len(encode(isolated))


def show_size(size: float) -> str:
    """`size` bytes as text, such as "1.5 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
