"""The cases in which the journal cannot be used: a damaged file, a bad disk, a file that was removed or moved.

Called by the store and the writer, on the journal's thread. A damaged file is renamed; it is never repaired or deleted.
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

CHECK_EVERY = 1.0  # seconds between two checks of the path; a check costs two waits for the interpreter's lock

log = structlog.get_logger("kernel.journal")


class JournalLocation:
    """The path at which the journal was `opened`, and whether the open file is still there.

    The daemon could go on writing to an open file that was removed or moved, but the next daemon would not find the new
    tasks.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.opened = os.stat(path)
        self._next_check = 0.0
        self._lost = False

    def refusal(self) -> JournalUnavailable | None:
        """The error with which to refuse new tasks if the file was removed or moved, else None."""
        now = time.monotonic()
        if now >= self._next_check:
            self._next_check = now + CHECK_EVERY
            self._check()
        if not self._lost:
            return None
        return JournalUnavailable(
            f"{self._path} was removed or moved while it was in use, so the next daemon would not find new tasks; "
            "put the file back, or copy the journal with `llmos backup FILE`, stop the daemon and put the copy there",
            retry_after=CHECK_EVERY,
        )

    def _check(self) -> None:
        try:
            lost = not os.path.samestat(os.stat(self._path), self.opened)
        except OSError:
            lost = True
        if lost and not self._lost:
            log.error("the journal was removed or moved; new tasks are refused", path=str(self._path))
        elif self._lost and not lost:
            log.info("the journal is back at its path; new tasks are accepted")
        self._lost = lost


def check_in_place(path: Path, known: os.stat_result) -> None:
    """Raise `OSError` if the file at `path` is not the `known` one, so that no empty file takes its place."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        found = None
    if found is None or not os.path.samestat(found, known):
        raise FileNotFoundError(errno.ENOENT, "the journal was removed or moved while it was in use", str(path))


def unusable(path: Path, error: Exception) -> JournalUnavailable:
    """The error with which a start fails if the journal at `path` cannot be read or written."""
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.ENOSPC or isinstance(error, apsw.FullError):
        hint = "make room on the disk of the state folder"
    elif number == errno.EROFS or isinstance(error, apsw.ReadOnlyError):
        hint = "make the disk of the state folder writable, or choose another one with --state"
    else:
        hint = "check the disk of the state folder, or choose another one with --state"
    why = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
    return JournalUnavailable(f"the journal at {path} cannot be used: {why}; no task was touched; {hint}")


def set_aside(path: Path) -> Path:
    """Rename the files of a damaged journal to an unused name, and return the new path."""
    stamp = time.strftime("%Y%m%dT%H%M%S")
    number = 0
    while (aside := path.with_name(f"{path.name}.damaged-{stamp}-{number}")).exists():
        number += 1
    for suffix in ("-wal", "-shm", ""):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    return aside
