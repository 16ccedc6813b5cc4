"""Preallocates the WAL so that commits never extend it.

Called once by the writer, on the journal's thread. A commit into blocks that the file already has syncs only these
blocks; a commit that extends the file also syncs the file system's own journal. PostgreSQL recycles its WAL segments
for that reason (documentation, "WAL Configuration"). SQLite ignores all that follows the last valid frame, as it does
after each checkpoint ("WAL-mode File Format", section 2.1). Preallocation never writes over existing frames.
"""

from __future__ import annotations

import os
from pathlib import Path

import structlog

from kernel.lib import failpoints

FREE_FACTOR = 64  # the free room on the disk must be this many times the added length
HEADER, FRAME = 32, 24 + 4096  # bytes

log = structlog.get_logger("kernel.journal")


def preallocate(journal: Path, pages: int) -> None:
    """Extend the WAL of `journal` with zeros to hold `pages`, unless the disk has little room. Logs errors."""
    try:
        failpoints.point("journal.extend")
        file = os.open(journal.with_name(journal.name + "-wal"), os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            size, disk = os.fstat(file).st_size, os.fstatvfs(file)
            missing = HEADER + pages * FRAME - size
            if missing > 0 and disk.f_bavail * disk.f_frsize >= missing * FREE_FACTOR:
                os.pwrite(file, bytes(missing), size)
                os.fdatasync(file)
        finally:
            os.close(file)
    except OSError as error:
        log.warning("the WAL could not be preallocated; commits are slower until it has grown", error=str(error))
