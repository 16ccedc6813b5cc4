"""The folder of swap files: a place of this daemon's own, one file for each sequence that is swapped out.

Used by the pagers of all models; drivers write and read the files. It removes what is no longer needed, and at a start
what dead daemons left behind: who is alive holds a lock on its folder. What is to outlive the daemon has a second name
in a folder that all lives share. It reads no file.
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
from pathlib import Path

import structlog

KEPT = "kept"  # the folder of what outlives the daemon
AGAIN = (1.0, 5.0, 60.0)  # seconds after which a file that was being written is looked for again

log = structlog.get_logger("kernel.models")


class SwapArea:
    """A folder below `folder` that nobody else uses or may look into, made when it is first needed.

    `full`: the disk has so little left that nothing more is to be written.
    """

    def __init__(self, folder: Path) -> None:
        self.full = False
        self._all = folder
        self._loop = asyncio.get_running_loop()
        self._removals: set[asyncio.Future[None]] = set()
        self._later: set[asyncio.TimerHandle] = set()
        self._own: Path | None = None
        self._lock: int | None = None

    def folder(self) -> str:
        """Where a driver may keep files without names; empty if there is no place for them."""
        try:
            self._usable()
        except OSError:
            return ""
        return str(self._own)

    def path(self, sequence: int) -> str:
        """Where the state of a sequence goes. Raises `OSError` if there is no place for it."""
        self._usable()
        return f"{self._own}/{sequence}.kv"

    def _usable(self) -> None:
        """Make the folder, unless there is one. Raises `OSError`."""
        if self.full:
            raise OSError(errno.ENOSPC, "the disk is nearly full", str(self._all))
        if self._own is not None:
            return
        self._all.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._all.chmod(0o700)
        while self._lock is None:
            self._own = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=self._all))
            # None if another daemon, at its start, took it for one of the dead before the lock was ours.
            self._lock = _locked(self._own)

    def remove(self, sequence: int) -> None:
        """Remove what there is of a sequence. Returns at once."""
        if self._own is not None:
            removal = self._loop.run_in_executor(None, _unlink, self._own, f"{sequence}.kv*")
            self._removals.add(removal)
            removal.add_done_callback(self._removals.discard)

    def remove_unfinished(self, sequence: int) -> None:
        """The same while a driver may still be writing it: look for it again, some times."""
        self.remove(sequence)
        for seconds in AGAIN:
            self._later.add(self._loop.call_later(seconds, self.remove, sequence))
        self._later = {timer for timer in self._later if timer.when() > self._loop.time()}

    def remove_old(self) -> int:
        """Remove what daemons left that are no more; how many there were. Blocks on the disk."""
        count = 0
        for folder in self._all.iterdir() if self._all.is_dir() else ():
            if folder == self._own or folder.name == KEPT or not folder.is_dir():
                continue
            lock = _locked(folder)
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)
                count += 1
        if count:
            log.info("removed swap files of daemons that are gone", daemons=count)
        return count

    # ---- what outlives the daemon

    def kept(self, name: str) -> str:
        """Where the state of that name is, if it was kept."""
        return f"{self._all}/{KEPT}/{name}.kv"

    def keep(self, path: str, name: str) -> None:
        """Let the file at `path` be found as `name` in the next life of the daemon. Blocks. Raises `OSError`."""
        kept = Path(self.kept(name))
        kept.parent.mkdir(mode=0o700, exist_ok=True)
        kept.unlink(missing_ok=True)
        kept.hardlink_to(path)
        descriptor = os.open(kept.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def drop(self, name: str) -> None:
        """Undo `keep`; nothing if it was not done. Blocks."""
        with contextlib.suppress(OSError):
            Path(self.kept(name)).unlink(missing_ok=True)

    def retain(self, names: Collection[str]) -> None:
        """Drop all that is kept under other names. Blocks."""
        for path in (self._all / KEPT).glob("*.kv"):
            if path.stem not in names:
                self.drop(path.stem)

    async def close(self) -> None:
        """Remove the folder and all in it."""
        for timer in self._later:
            timer.cancel()
        if self._own is not None and self._lock is not None:
            await asyncio.gather(*self._removals, return_exceptions=True)
            await asyncio.to_thread(shutil.rmtree, self._own, ignore_errors=True)
            os.close(self._lock)
            self._own = self._lock = None


def _locked(folder: Path) -> int | None:
    """A descriptor that holds the lock of `folder`; None if it is held already, or the folder has gone."""
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
    """Remove the files that match: the state of a sequence, and what a driver did not finish writing of it."""
    for path in folder.glob(pattern):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
