"""What is done where the journal cannot begin: a damaged file is put aside, a bad disk is named.

Called by the store and the writer, on the journal's thread.
"""

from __future__ import annotations

import contextlib
import errno
import time
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
