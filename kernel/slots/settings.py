"""What may be set about the resources that all models share. Data only."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

SHARE = 0.7  # of the machine's memory, for drivers, where nothing is set


class ResourceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`memory`: bytes for all drivers together (0: seven tenths of the machine's); `collate`: seconds for which calls
    of one model wait at most until another one that fills the memory has to go; `leak_margin`: bytes that a driver may
    grow beyond its measured size and its keys and values, before it is taken to leak."""

    memory: Annotated[int, Meta(ge=0)] = 0
    collate: Annotated[float, Meta(gt=0)] = 10.0
    leak_margin: Annotated[int, Meta(ge=0)] = 1 << 30

    def budget(self, memory_total: int) -> int:
        """Bytes for all drivers together, on a machine with so many."""
        return self.memory or int(SHARE * memory_total)
