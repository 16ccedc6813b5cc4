"""What is said of a disk with which the journal cannot begin. Called by the journal's thread."""

from __future__ import annotations

import errno
from pathlib import Path

import apsw

from ipc.errors import JournalUnavailable


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
