"""A disk that fails on purpose: a layer between SQLite and the files of the journal.

Used by the store, and only while a fault of the disk is armed; what is not to fail goes through as it is. Each call on
a file is a place to die, to fail or to be slow, as in ALICE (Pillai et al., "All File Systems Are Not Created Equal",
OSDI 2014). What was written is not taken back: of a power cut it shows the torn last write alone.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

import apsw

from kernel.lib import failpoints

NAME = "llmosd-faults"

# As SQLite's own layer for Unix tells them.
ERRORS: dict[int, type[apsw.Error]] = {
    errno.ENOSPC: apsw.FullError,
    errno.EDQUOT: apsw.FullError,
    errno.EROFS: apsw.ReadOnlyError,
    errno.EACCES: apsw.CantOpenError,
}


class Disk(apsw.VFS):
    """The layer, under `NAME`, from when it is made until it is let go."""

    def __init__(self) -> None:
        super().__init__(NAME, "")

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        return File(name, flags)


class File(apsw.VFSFile):
    """One file, by the kind that its name says it is."""

    def __init__(self, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        self._kind = _kind(name)
        with self._failing("open"):
            super().__init__("", name, flags)

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        with self._failing("read"):
            return super().xRead(amount, offset)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        rule = failpoints.due(f"disk.write.{self._kind}")
        if rule is not None:
            if rule.action in ("torn", "short"):
                super().xWrite(data[: len(data) // 2], offset)
            _perform(rule)
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:  # noqa: N802
        with self._failing("sync"):
            super().xSync(flags)

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        with self._failing("truncate"):
            super().xTruncate(newsize)

    @contextlib.contextmanager
    def _failing(self, call: str) -> Iterator[None]:
        rule = failpoints.due(f"disk.{call}.{self._kind}")
        if rule is not None:
            _perform(rule)
        yield


def _perform(rule: failpoints.Fault) -> None:
    try:
        rule.perform()
    except OSError as error:
        raise ERRORS.get(error.errno or 0, apsw.IOError)(str(error)) from None


def _kind(name: str | apsw.URIFilename | None) -> str:
    path = name.filename() if isinstance(name, apsw.URIFilename) else name or ""
    if path.endswith("-wal"):
        return "log"
    return "main" if path.endswith(".sqlite") else "other"
