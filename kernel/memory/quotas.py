"""The quotas of memory, and the usage that is checked against them.

Used by private and by shared memory. All sizes are bytes of the encoded form. A usage changes only by the sizes of
entries that were added or removed, so it never drifts and never falls below zero.
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
    """Limits: the keys and bytes of each process, the regions and bytes of each owner, and the bytes of all regions.

    `message_bytes` limits the bytes of unread messages in all mailboxes together (`kernel/messages`).
    """

    keys: Number = 10_000
    key_bytes: Number = 64 * 1024 * 1024
    regions: Number = 10_000
    region_bytes: Number = 256 * 1024 * 1024
    shared_bytes: Number = 1024 * 1024 * 1024
    message_bytes: Number = 1024 * 1024 * 1024


class MemoryUsage:
    """The number of keys of one process, or of regions of one owner, and their bytes."""

    __slots__ = ("entries", "size")

    def __init__(self) -> None:
        self.entries = 0
        self.size = 0

    def check(self, who: str, unit: str, entries: int, size: int, maxima: tuple[int, int]) -> None:
        """Check whether `entries` more entries and `size` more bytes fit within `maxima` (entries, bytes).

        A number that does not grow always fits, even above its maximum. Raises `LimitExceeded` with the name of the
        limit, its maximum and the total that was wanted.
        """
        for limit, more, total, maximum in (
            (unit, entries, self.entries + entries, maxima[0]),
            ("bytes", size, self.size + size, maxima[1]),
        ):
            if more > 0 and total > maximum:
                raise LimitExceeded(
                    f"{who} would have {total} {limit}, and the limit is {maximum}; delete unused entries",
                    limit=limit,
                    maximum=maximum,
                    wanted=total,
                )

    def charge(self, entries: int, size: int) -> None:
        """Add entries and bytes that were stored. Negative numbers: entries and bytes that were removed."""
        self.entries += entries
        self.size += size


def check_name(name: Any, what: str) -> None:
    """Raise `InvalidCall` unless `name` is a text of 1 to `NAME_LENGTH` characters. The error calls it `what`."""
    check_text(name, what, NAME_LENGTH, least=1)
