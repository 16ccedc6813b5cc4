"""The swap area: a folder of this daemon with one file for each sequence that is swapped out.

Used by the pagers of all models; drivers write and read the files. It removes files that are no longer needed, and when
the daemon starts, the folders of dead daemons: a living daemon holds a lock on its folder. A file that must survive the
daemon gets a hard link in a folder that all runs share. It never reads a file.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Collection
from functools import partial
from pathlib import Path

import structlog

from kernel.lib.private_files import FOLDER, make_private, sync_folder
from kernel.lib.worker_threads import begin_in_thread, in_thread

PERSISTENT = "kept"  # the folder of files that survive the daemon
RETRIES = (1.0, 5.0, 60.0)  # delays of repeated removals, because a driver may still be writing the file

log = structlog.get_logger("kernel.models")


class SwapArea:
    """A private folder below `folder`, readable by this user alone, created at first use.

    `full`: the disk is nearly full, so nothing more may be written.
    """

    def __init__(self, folder: Path) -> None:
        self.full = False
        self._root = folder
        self._loop = asyncio.get_running_loop()
        self._removals: set[asyncio.Future[None]] = set()
        self._later: set[asyncio.TimerHandle] = set()
        self._own: Path | None = None
        self._lock: int | None = None

    def folder(self) -> str:
        """The folder in which a driver may create files without a name; empty if there is no folder."""
        try:
            self._make_folder()
        except OSError:
            return ""
        return str(self._own)

    def path(self, sequence: int) -> str:
        """The path of the swap file of a sequence. Raises `OSError` if nothing can be written."""
        self._make_folder()
        return f"{self._own}/{sequence}.kv"

    def _make_folder(self) -> None:
        """Create and lock the folder if it does not exist. Raises `OSError`, also if the disk is nearly full."""
        if self.full:
            raise OSError(errno.ENOSPC, "the disk is nearly full", str(self._root))
        if self._own is not None and self._lock is not None:
            if self._own.is_dir():
                return
            log.warning("the folder of swap files was removed, and is made again", folder=str(self._own))
            os.close(self._lock)
            self._lock = None
        make_private(self._root)
        self._root.chmod(FOLDER)
        if self._own is not None:  # at the same place, which the drivers know
            self._own.mkdir(mode=FOLDER, exist_ok=True)
            self._lock = _try_lock(self._own)
        while self._lock is None:
            self._own = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=self._root))
            # None if another daemon, which started meanwhile, removed the folder because it was not locked yet.
            self._lock = _try_lock(self._own)

    def remove(self, sequence: int) -> None:
        """Remove the files of a sequence, in a worker thread."""
        if self._own is not None:
            removal = begin_in_thread(_unlink, self._own, f"{sequence}.kv*")
            self._removals.add(removal)
            removal.add_done_callback(self._removals.discard)

    def remove_unfinished(self, sequence: int) -> None:
        """Remove the files of a sequence that a driver may still be writing: now, and again after `RETRIES`."""
        self.remove(sequence)
        for seconds in RETRIES:
            self._later.add(self._loop.call_later(seconds, self.remove, sequence))
        self._later = {timer for timer in self._later if timer.when() > self._loop.time()}

    def remove_old(self) -> int:
        """Remove the folders of dead daemons. Returns how many there were. Blocks on the disk."""
        count = 0
        for folder in self._root.iterdir() if self._root.is_dir() else ():
            if folder == self._own or folder.name == PERSISTENT or not folder.is_dir():
                continue
            lock = _try_lock(folder)
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)
                count += 1
        if count:
            log.info("removed swap files of dead daemons", daemons=count)
        return count

    # ---- files that survive the daemon

    def persistent_path(self, name: str) -> str:
        """The path under which `persist` stores the file `name`."""
        return f"{self._root}/{PERSISTENT}/{name}.kv"

    def persist(self, path: str, name: str) -> None:
        """Persist the file at `path` as `name` for the next run of the daemon. Blocks. Raises `OSError`."""
        target = Path(self.persistent_path(name))
        make_private(target.parent)
        target.unlink(missing_ok=True)
        target.hardlink_to(path)
        sync_folder(target.parent)

    def delete(self, name: str) -> None:
        """Remove the persisted file `name`, if there is one. Blocks."""
        with contextlib.suppress(OSError):
            Path(self.persistent_path(name)).unlink(missing_ok=True)

    def delete_all_but(self, names: Collection[str]) -> None:
        """Remove all persisted files but those of `names`. Blocks."""
        for path in (self._root / PERSISTENT).glob("*.kv"):
            if path.stem not in names:
                self.delete(path.stem)

    async def close(self) -> None:
        """Remove the folder of this daemon."""
        for timer in self._later:
            timer.cancel()
        if self._own is not None and self._lock is not None:
            await asyncio.gather(*self._removals, return_exceptions=True)
            await in_thread(partial(shutil.rmtree, self._own, ignore_errors=True))
            os.close(self._lock)
            self._own = self._lock = None


def _try_lock(folder: Path) -> int | None:
    """A descriptor that holds the lock of `folder`; None if the lock is taken or the folder is gone."""
    descriptor = None
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if folder.exists():
            return descriptor
    except OSError:
        pass
    if descriptor is not None:
        os.close(descriptor)
    return None


def _unlink(folder: Path, pattern: str) -> None:
    """Remove the files that match: the swap file of a sequence, and a partial one that a driver left."""
    for path in folder.glob(pattern):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
