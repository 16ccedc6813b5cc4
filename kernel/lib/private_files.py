"""The daemon's own files and folders: for this user alone, and opened without following links.

Used wherever the daemon and its drivers open a file that they may create. A link at the place of such a file would let
its maker choose which file we write. It never opens anything but a regular file.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

FILE, FOLDER = 0o600, 0o700  # modes
OTHERS = 0o077
UNSYNCED = (errno.EACCES, errno.EINVAL, errno.ENOTSUP)  # of folders that we may not read, and of some file systems
LINK = "it is a symbolic link, and such a file must not be one; remove it"
NOT_REGULAR = "it is no regular file; remove it"


def open_private(path: str | Path, flags: int) -> int:
    """Open the file at `path`, and create it for this user alone if `flags` has `O_CREAT`. Returns a descriptor.

    Takes away the rights of other users to a file of ours. Raises `OSError`. Its `strerror` is a sentence if `path` is
    a link, or not a regular file, or a file of another user.
    """
    # Without O_NONBLOCK, opening a named pipe would wait for another program.
    guarded = flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    try:
        descriptor = os.open(path, guarded, FILE)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _refused(errno.ELOOP, LINK, path) from None
        if error.errno == errno.ENXIO:
            raise _refused(errno.EINVAL, NOT_REGULAR, path) from None
        raise
    try:
        status = os.fstat(descriptor)
        check_private(status, path)
        if status.st_mode & OTHERS and status.st_uid == os.geteuid():
            os.fchmod(descriptor, stat.S_IMODE(status.st_mode) & ~OTHERS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_private(status: os.stat_result, path: str | Path) -> None:
    """Raise `OSError` if `status`, by `lstat` or `fstat`, is not that of a regular file of ours or of root.

    Root may use the files of every user, as in containers, where mounted folders keep the owners of another machine.
    """
    if stat.S_ISLNK(status.st_mode):
        raise _refused(errno.ELOOP, LINK, path)
    if not stat.S_ISREG(status.st_mode):
        raise _refused(errno.EINVAL, NOT_REGULAR, path)
    if os.geteuid() not in (0, status.st_uid) and status.st_uid != 0:
        raise _refused(errno.EPERM, f"it belongs to user {status.st_uid}, not to you; remove it", path)


def make_private(folder: Path) -> None:
    """Make `folder` and its missing parents, for this user alone. Existing ones stay. Raises `OSError`.

    A new folder is on disk: otherwise a power cut could take away the folder with all files that are synced in it.
    """
    try:
        try:
            folder.mkdir(FOLDER)
        except FileNotFoundError:
            make_private(folder.parent)
            folder.mkdir(FOLDER)  # a file system that makes no folders, such as /proc, raises the same error again
    except FileExistsError:
        if not folder.is_dir():
            raise
    else:
        try:
            sync_folder(folder.parent)
        except OSError as error:
            if error.errno not in UNSYNCED:
                raise


def sync_folder(folder: Path) -> None:
    """Write the names in `folder` to the disk. Blocks. Raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refused(number: int, why: str, path: str | Path) -> OSError:
    return OSError(number, why, str(path))
