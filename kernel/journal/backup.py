"""A copy of the journal while it is in use: a file that a daemon can start on.

Made and moved on by the journal's thread, some pages between two transactions, by SQLite's online backup. What is
written meanwhile goes into the copy, too, so it is the journal of the moment at which the copy is finished.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import apsw

from ipc.errors import BackupFailed, Busy, JournalUnavailable, LlmosError
from kernel.journal.requests import Copy
from kernel.journal.store import Store

STEP = 128  # pages of 4 KiB that are copied between two transactions


class BackupJob:
    """The copy that is being made, if one is. `answer` is called with a `Copy` that has its outcome."""

    def __init__(self, answer: Callable[[Copy], None]) -> None:
        self._answer = answer
        self._current: tuple[Copy, Backup] | None = None

    @property
    def under_way(self) -> bool:
        return self._current is not None

    def begin(self, one: Copy, store: Store | None) -> bool:
        """Whether it is being made; if not, its outcome says why."""
        try:
            if store is None:
                raise JournalUnavailable("the journal cannot be read; look at the disk of the state folder")
            if self._current is not None:
                raise Busy("the journal is being copied already; try again when that is done", retry_after=1.0)
            self._current = one, Backup(store, one.path)
        except LlmosError as error:
            one.outcome = error
        return one.outcome is None

    def step(self) -> None:
        """Copy on, if there is anything to copy."""
        if self._current is None:
            return
        one, backup = self._current
        try:
            one.outcome = backup.step()
        except BackupFailed as error:
            one.outcome = error
        if one.outcome is not None:
            self._current = None
            self._answer(one)

    def give_up(self, why: str) -> None:
        """The journal is about to be closed: leave nothing of what is not whole."""
        if self._current is None:
            return
        (one, backup), self._current = self._current, None
        backup.give_up()
        one.outcome = BackupFailed(f"{backup.path} was not finished: {why}")
        self._answer(one)


class Backup:
    """A copy on its way to `path`, where there must be nothing yet. Of one that fails nothing is left."""

    def __init__(self, store: Store, path: Path) -> None:
        """Raises `BackupFailed`."""
        self.path = path
        self._source = store.db
        if not path.is_absolute():
            raise BackupFailed(f"{path} is no absolute path, and the daemon may stand in another folder")
        if "\0" in str(path):
            raise BackupFailed(f"{str(path)!r} is no path: it has a null character")
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            raise BackupFailed(f"{path} exists, and is not overwritten; choose another name") from None
        except OSError as error:
            raise BackupFailed(f"cannot write {path}: {error.strerror}") from None
        try:
            self._copy = apsw.Connection(str(path))
            self._backup = self._copy.backup("main", store.db, "main")
            self._pages = self._count()
        except apsw.Error as error:
            path.unlink(missing_ok=True)
            raise BackupFailed(f"cannot write {path}: {error}") from None

    def step(self) -> int | None:
        """Copy on. The size of the copy in bytes once it is whole and on the disk, else None. Raises `BackupFailed`."""
        try:
            before, self._pages = self._pages, self._count()
            # As many more as came since, so that it comes to an end however fast the journal grows.
            self._backup.step(STEP + max(self._pages - before, 0))
            if not self._backup.done:
                return None
            self._backup.finish()
            self._finish()
            return self.path.stat().st_size
        except (apsw.Error, OSError) as error:
            self.give_up()
            raise BackupFailed(f"cannot write {self.path}: {_why(error)}") from None

    def _count(self) -> int:
        """The pages of the journal now."""
        return int(next(iter(self._source.execute("PRAGMA page_count")))[0])

    def give_up(self) -> None:
        """Leave nothing of it."""
        with contextlib.suppress(apsw.Error):
            self._backup.close(True)
        with contextlib.suppress(apsw.Error):
            self._copy.close()
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _finish(self) -> None:
        """Make it one file, of a daemon that died of nothing."""
        self._copy.execute("PRAGMA journal_mode = DELETE")
        self._copy.execute("UPDATE stops SET clean = 1")
        self._copy.close()
        for path, flags in ((self.path, os.O_RDWR), (self.path.parent, os.O_RDONLY | os.O_DIRECTORY)):
            descriptor = os.open(path, flags | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _why(error: Exception) -> str:
    """What went wrong. Of a copy SQLite has the code alone, and for a text that there was no error."""
    if isinstance(error, apsw.FullError):
        return "the disk is full"
    return f"SQLite error {error.result}" if str(error) == "not an error" else str(error)  # type: ignore[attr-defined]
