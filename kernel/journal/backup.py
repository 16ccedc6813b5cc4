"""The online backup: copies the journal while it is in use, to a file that a daemon can start on.

The journal's thread copies some pages between two transactions with SQLite's online backup. The backup copies later
writes as well, so the copy is the journal at the moment at which the last step ends. It never blocks a commit for
longer than one step. It deletes the file of a backup that fails; only a killed daemon leaves an unfinished file.
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
from kernel.lib.private_files import sync_folder

STEP = 128  # pages of 4 KiB copied between two transactions


class BackupJob:
    """The backup in progress, if there is one. `answer` is called with the `Copy` once it has its outcome."""

    def __init__(self, answer: Callable[[Copy], None]) -> None:
        self._answer = answer
        self._current: tuple[Copy, BackupCopy] | None = None

    @property
    def in_progress(self) -> bool:
        return self._current is not None

    def start(self, request: Copy, store: Store | None) -> bool:
        """Start a backup and return True; if that fails, set the outcome of `request` and return False."""
        try:
            if store is None:
                raise JournalUnavailable("the journal cannot be read; check the disk of the state folder")
            if self._current is not None:
                raise Busy("another backup is in progress; try again when it is done", retry_after=1.0)
            self._current = request, BackupCopy(store, request.path)
        except LlmosError as error:
            request.outcome = error
        return request.outcome is None

    def step(self) -> None:
        """Copy some more pages, if a backup is in progress."""
        if self._current is None:
            return
        request, backup = self._current
        try:
            request.outcome = backup.step()
        except BackupFailed as error:
            request.outcome = error
        if request.outcome is not None:
            self._current = None
            self._answer(request)

    def abort(self, why: str) -> None:
        """Delete the unfinished copy, because its source is about to be closed, and answer with the reason `why`."""
        if self._current is None:
            return
        (request, backup), self._current = self._current, None
        with contextlib.suppress(Exception):  # the caller has other work, which must go on
            backup.abort()
        request.outcome = BackupFailed(f"{backup.path} was not finished: {why}")
        self._answer(request)


class BackupCopy:
    """An unfinished copy at `path`, where no file may exist before. A copy that fails is deleted."""

    def __init__(self, store: Store, path: Path) -> None:
        """Raises `BackupFailed`."""
        self.path = path
        self._source = store.db
        if not path.is_absolute():
            raise BackupFailed(f"{path} is no absolute path; give one, since the daemon may run in another folder")
        if "\0" in str(path):
            raise BackupFailed(f"{str(path)!r} is no path: it contains a null character")
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            raise BackupFailed(f"{path} exists and is not overwritten; choose another name") from None
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
        """Copy some pages. Returns the size in bytes once the copy is whole and on disk. Raises `BackupFailed`."""
        try:
            before, self._pages = self._pages, self._count()
            # Add the pages by which the journal has grown, so that the copy ends even if the journal grows fast.
            self._backup.step(STEP + max(self._pages - before, 0))
            if not self._backup.done:
                return None
            self._backup.finish()
            self._finish()
            return self.path.stat().st_size
        except (apsw.Error, OSError) as error:
            self.abort()
            raise BackupFailed(f"cannot write {self.path}: {_why(error)}") from None

    def _count(self) -> int:
        """The present number of pages in the journal."""
        return int(next(iter(self._source.execute("PRAGMA page_count")))[0])

    def abort(self) -> None:
        """Delete the copy."""
        with contextlib.suppress(apsw.Error):
            self._backup.close(True)
        with contextlib.suppress(apsw.Error):
            self._copy.close()
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _finish(self) -> None:
        """Turn the copy into a single synced file. Mark an orderly stop, so that its first start counts no crash."""
        self._copy.execute("PRAGMA journal_mode = DELETE")
        self._copy.execute("UPDATE stops SET clean = 1")
        self._copy.close()
        descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync_folder(self.path.parent)


def _why(error: Exception) -> str:
    """The reason in words. For a backup, SQLite may set an error code with the text "not an error"."""
    if isinstance(error, apsw.FullError):
        return "the disk is full"
    return f"SQLite error {error.result}" if str(error) == "not an error" else str(error)  # type: ignore[attr-defined]
