"""The file of the log, made as long as it gets before it is written.

Called by the writer, on the journal's thread, when it has begun. A commit that writes over blocks which the file has
already asks the disk for them alone; one that makes the file longer asks for the file system's own journal, too.
PostgreSQL keeps the segments of its log for that reason (documentation, "WAL Configuration"). What follows the last
frame is nothing to SQLite, as after each move of the log ("WAL-mode File Format", section 2.1).
"""

from __future__ import annotations

import os
from pathlib import Path

import structlog

from kernel.lib import failpoints

ROOM = 64  # how many times its length has to be free on the disk
HEADER, FRAME = 32, 24 + 4096  # bytes

log = structlog.get_logger("kernel.journal")


def extend(journal: Path, pages: int) -> None:
    """Make the log of `journal` long enough for `pages`, with zeros, unless the disk has little room."""
    try:
        failpoints.point("journal.extend")
        file = os.open(journal.with_name(journal.name + "-wal"), os.O_WRONLY | os.O_CLOEXEC)
        try:
            has, disk = os.fstat(file).st_size, os.fstatvfs(file)
            lacks = HEADER + pages * FRAME - has
            if lacks > 0 and disk.f_bavail * disk.f_frsize >= lacks * ROOM:
                os.pwrite(file, bytes(lacks), has)
                os.fdatasync(file)
        finally:
            os.close(file)
    except OSError as error:
        log.warning("the log could not be made longer; commits take longer until it is", error=str(error))
