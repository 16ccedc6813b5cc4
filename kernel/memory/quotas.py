"""How much may be kept in memory, and the accounts of what is kept.

Used by private and shared memory alike. All sizes are bytes of the encoded form. An account only ever changes by what
was really added or taken away, so it can neither drift nor fall below zero.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ipc.errors import LimitExceeded
from kernel.lib.validation import check_text

NAME_LENGTH = 512  # characters of a key or of the name of a region

Number = Annotated[int, Meta(ge=0)]


class MemoryQuotas(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What may be kept: keys and bytes of one process, regions and bytes of one owner, bytes of all regions."""

    keys: Number = 10_000
    key_bytes: Number = 64 * 1024 * 1024
    regions: Number = 10_000
    region_bytes: Number = 256 * 1024 * 1024
    shared_bytes: Number = 1024 * 1024 * 1024


class OwnerUsage:
    """Entries and bytes that one party keeps."""

    __slots__ = ("entries", "size")

    def __init__(self) -> None:
        self.entries = 0
        self.size = 0

    def check(self, who: str, unit: str, entries: int, size: int, most: tuple[int, int]) -> None:
        """Whether `entries` and `size` bytes more may be kept. What does not grow always may.

        Raises `LimitExceeded` with the name of the limit, its maximum, and what would have been kept.
        """
        for limit, more, total, maximum in (
            (unit, entries, self.entries + entries, most[0]),
            ("bytes", size, self.size + size, most[1]),
        ):
            if more > 0 and total > maximum:
                raise LimitExceeded(
                    f"{who} would keep {total} {limit}, and may keep {maximum}; delete what is no longer needed",
                    limit=limit,
                    maximum=maximum,
                    wanted=total,
                )

    def book(self, entries: int, size: int) -> None:
        """Add what was kept, or take off what was given up."""
        self.entries += entries
        self.size += size


def check_name(name: Any, what: str) -> None:
    """Raise `InvalidCall` for a `name` that a `what` cannot have."""
    check_text(name, what, NAME_LENGTH, least=1)
