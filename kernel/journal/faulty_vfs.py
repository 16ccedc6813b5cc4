"""A disk that fails on purpose: a layer between SQLite and the files of the journal.

The store uses it only while a fault of the disk is armed. At each call on a file it can kill the process, fail or wait,
as in ALICE (Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014); all other calls pass through. It never
undoes a finished write: of the effects of a power cut it simulates one, the torn last write.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

import apsw

from kernel.lib import failpoints

NAME = "llmosd-faults"

# The same mapping as in SQLite's own layer for Unix.
ERRORS: dict[int, type[apsw.Error]] = {
    errno.ENOSPC: apsw.FullError,
    errno.EDQUOT: apsw.FullError,
    errno.EROFS: apsw.ReadOnlyError,
    errno.EACCES: apsw.CantOpenError,
}


class FaultyVFS(apsw.VFS):
    """The layer. SQLite knows it by `NAME` for as long as this object exists."""

    def __init__(self) -> None:
        super().__init__(NAME, "")

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        return FaultyFile(name, flags)


class FaultyFile(apsw.VFSFile):
    """One file of SQLite. Its kind follows from its name: `main`, `log` (the WAL) or `other`."""

    def __init__(self, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        self._kind = _kind(name)
        with self._faults("open"):
            super().__init__("", name, flags)

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        with self._faults("read"):
            return super().xRead(amount, offset)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        rule = failpoints.next_fault(f"disk.write.{self._kind}")
        if rule is not None:
            if rule.action in ("torn", "short"):
                super().xWrite(data[: len(data) // 2], offset)
            _perform(rule)
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:  # noqa: N802
        with self._faults("sync"):
            super().xSync(flags)

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        with self._faults("truncate"):
            super().xTruncate(newsize)

    @contextlib.contextmanager
    def _faults(self, call: str) -> Iterator[None]:
        rule = failpoints.next_fault(f"disk.{call}.{self._kind}")
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
