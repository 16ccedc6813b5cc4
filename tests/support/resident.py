"""The memory that a range of addresses takes, according to the operating system.

Used by the tests of pages, KV memory and swap files. It never reads the driver's own books.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it imports torch
    from kernel.drivers.transformers.pages import Range


def memory_of(area: Range, kind: str = "Rss") -> int:
    """Bytes of a range in memory. `Pss` counts shared pages in proportion, `Anonymous` only pages without a file."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            start = int(first.partition("-")[0], 16)
            inside = area.address <= start < area.address + area.size
        elif inside and first == f"{kind}:":
            found += int(line.split()[1]) * 1024
    return found
