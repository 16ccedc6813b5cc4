"""What is done where the journal cannot be used: a damaged file is put aside, a bad disk or a lost file is named.

Called by the store and the writer, on the journal's thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from pathlib import Path

import apsw
import structlog

from ipc.errors import JournalUnavailable

LOOK = 1.0  # seconds between two looks at the place of the file: each costs two waits for the interpreter's lock

log = structlog.get_logger("kernel.journal")


class JournalLocation:
    """Where the journal was opened.

    To remove or move a file does not stop a process that has it open: what it goes on to write is lost to the next
    daemon.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opened = os.stat(path)
        self._next = 0.0
        self._lost = False

    def refusal(self) -> JournalUnavailable | None:
        """Why no new task may be accepted, if the file is not there any more."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + LOOK
            self._look()
        if not self._lost:
            return None
        return JournalUnavailable(
            f"{self._path} was removed or moved while it was in use, and what is written now would not be found again; "
            "put it back. Or copy it by `llmos backup FILE`, stop the daemon, and put the copy there",
            retry_after=LOOK,
        )

    def _look(self) -> None:
        try:
            lost = not os.path.samestat(os.stat(self._path), self._opened)
        except OSError:
            lost = True
        if lost and not self._lost:
            log.error("the journal was removed or moved; new tasks are refused", path=str(self._path))
        elif self._lost and not lost:
            log.info("the journal is where it was; new tasks are taken")
        self._lost = lost


def unusable(path: Path, error: Exception) -> JournalUnavailable:
    """The end of a start on a disk that does not take or give what the journal at `path` needs."""
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.ENOSPC or isinstance(error, apsw.FullError):
        hint = "make room on the disk of the state folder"
    elif number == errno.EROFS or isinstance(error, apsw.ReadOnlyError):
        hint = "make the disk of the state folder writable, or choose another one with --state"
    else:
        hint = "look at the disk of the state folder, or choose another one with --state"
    return JournalUnavailable(f"the journal at {path} cannot be used: {error}; no task was touched; {hint}")


def set_aside(path: Path) -> Path:
    """Rename the files of a damaged journal to a name that nothing has."""
    stamp = time.strftime("%Y%m%dT%H%M%S")
    number = 0
    while (aside := path.with_name(f"{path.name}.damaged-{stamp}-{number}")).exists():
        number += 1
    for suffix in ("-wal", "-shm", ""):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    return aside
