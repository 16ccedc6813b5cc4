"""Notices when it is worth another attempt to load a program: a file has changed, some time has passed, a user asks.

Used while tasks or children of a previous run wait for their programs; without them it does nothing. It never loads a
program itself, and never runs a file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import structlog

from ipc.errors import Busy
from kernel.programs.loader import ProgramLoader
from kernel.programs.origin import without_origin

LOOK_SECONDS = 1.0  # between two looks for changed files
FIRST_PAUSE = 1.0  # seconds until the next attempt if no file changes, doubled after each
LONGEST_PAUSE = 60.0

log = structlog.get_logger("kernel.programs")

Retry = Callable[[], None]


class ProgramWatch:
    """Calls the functions that were added when files of programs change, and at growing intervals."""

    def __init__(self, loader: ProgramLoader) -> None:
        self._loader = loader
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[Retry, Iterable[str]] = {}
        self._watch: asyncio.Task[None] | None = None
        self._asked = asyncio.Event()
        self._pause = FIRST_PAUSE
        self._attempt_at = 0.0  # the loop time of the next attempt

    def add(self, retry: Retry, names: Iterable[str]) -> None:
        """Call `retry` until it is removed. `names`: the programs that it needs, of which some may be paths."""
        self._waiting[retry] = names
        self._pause = FIRST_PAUSE
        self._attempt_at = min(self._attempt_at, self._loop.time() + FIRST_PAUSE)
        if self._watch is None:
            self._attempt_at = self._loop.time() + FIRST_PAUSE
            self._watch = asyncio.Task(self._run(), loop=self._loop, context=without_origin())

    def remove(self, retry: Retry) -> None:
        """Call `retry` no more."""
        self._waiting.pop(retry, None)

    def retry_now(self) -> None:
        """Try again at once, because a user asks for it."""
        self._asked.set()

    def stop(self) -> None:
        """Call nobody any more."""
        self._waiting.clear()
        if self._watch is not None:
            self._watch.cancel()

    @property
    def seconds_left(self) -> float:
        """Seconds until the next attempt if no file changes."""
        return max(self._attempt_at - self._loop.time(), 0.0)

    # ---- inside

    async def _run(self) -> None:
        before = None
        while self._waiting:
            self._asked.clear()
            stamp = await self._stamp()
            changed = stamp is not None and stamp != before  # at first, too: the last attempt was before this look
            before = before if stamp is None else stamp
            if changed or self._asked.is_set() or self._loop.time() >= self._attempt_at:
                self._pause = FIRST_PAUSE if changed else min(self._pause * 2, LONGEST_PAUSE)
                self._attempt_at = self._loop.time() + self._pause
                for retry in list(self._waiting):
                    retry()
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._asked.wait()
                self._attempt_at = 0.0
            except TimeoutError:
                pass
        self._watch = None

    async def _stamp(self) -> frozenset[object] | None:
        """The state of the files; None if the disk hangs."""
        names = [name for some in self._waiting.values() for name in some]
        try:
            return await self._loader.in_worker(lambda since: self._loader.stamp(names, since))
        except (Busy, OSError):
            return None
        except Exception:  # the tasks that wait must not wait for ever
            log.exception("cannot look for changed files of programs")
            return None
