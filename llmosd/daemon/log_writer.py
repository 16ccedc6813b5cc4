"""Writes text to a standard stream from a thread of its own, so that a stream that nobody reads blocks nobody else.

Everything that the daemon writes to its standard error and standard output goes through a `LogWriter`. Its queue is
bounded in lines and bytes. Text that finds it full is dropped and counted, and the next text that gets through follows
a line with the count. `write` never waits and never raises; `close` waits for a short and bounded time only.
"""

from __future__ import annotations

import fcntl
import os
import select
import threading
import time
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue

MAX_LINES = 10_000
MAX_BYTES = 4 << 20
CHUNK = select.PIPE_BUF  # bytes of one write: a pipe takes them whole or not at all
CLOSE_SECONDS = 5.0  # that `close` waits for a reader that reads
STALLED_SECONDS = 1.0  # that `close` waits for a reader that does not
FIRST_FREE = 3  # descriptors below are the standard streams

_writers: weakref.WeakSet[LogWriter] = weakref.WeakSet()


class LogWriter:
    """The queue and the thread for one descriptor. `notice` makes the line that reports a number of dropped texts."""

    def __init__(self, descriptor: int, *, max_lines: int = MAX_LINES, max_bytes: int = MAX_BYTES) -> None:
        # A copy, because an agent may close or replace the standard descriptor.
        self._file = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE)
        self.notice: Callable[[int], bytes] = _plain_notice
        self._max_lines = max_lines
        self._max_bytes = max_bytes
        self._queue: SimpleQueue[bytes] = SimpleQueue()
        self._lock = threading.RLock()  # reentrant: a finalizer may log while its thread holds it
        self._written = threading.Condition(self._lock)
        self._lines = 0  # texts that are queued or being written
        self._bytes = 0  # of them
        self._dropped = 0  # since the last notice
        self._reported = 0  # by the notice that is being written
        self._torn = False  # the last write failed within a line
        self._forked = False
        _writers.add(self)
        threading.Thread(target=self._serve, name="llmosd log", daemon=True).start()

    # ---- from any thread

    def write(self, text: bytes) -> None:
        """Queue `text`, usually one line, or drop it if the queue is full."""
        if not text:
            return
        if self._forked:
            self._write_if_possible(text)
            return
        with self._lock:
            if self._lines >= self._max_lines or self._bytes + len(text) > self._max_bytes:
                self._dropped += 1
                return
            self._lines += 1
            self._bytes += len(text)
            self._queue.put(text)

    @property
    def queued(self) -> tuple[int, int, int]:
        """The texts that wait, their bytes, and the texts dropped since the last notice."""
        with self._lock:
            return self._lines, self._bytes, self._dropped + self._reported

    def close(self, seconds: float = CLOSE_SECONDS, stalled: float = STALLED_SECONDS) -> bool:
        """Wait until everything is written. Returns false if the reader does not read; the rest is then lost.

        Waits for at most `seconds`, and at most `stalled` seconds for one write.
        """
        end = time.monotonic() + seconds
        with self._lock:
            while self._lines:
                left = min(stalled, end - time.monotonic())
                if left <= 0 or not self._written.wait(left):
                    return False
        return True

    # ---- on the thread

    def _serve(self) -> None:
        while True:
            texts = [self._queue.get()]
            size = len(texts[0])
            while size < CHUNK:
                try:
                    texts.append(self._queue.get_nowait())
                except Empty:
                    break
                size += len(texts[-1])
            with self._lock:
                dropped, self._dropped = self._dropped, 0
                self._reported = dropped
            done = self._write(b"".join([self._notice(dropped), *texts] if dropped else texts))
            with self._lock:
                self._reported = 0
                if not done:
                    self._dropped += dropped + len(texts)
                self._lines -= len(texts)
                self._bytes -= size
                self._written.notify_all()

    def _notice(self, dropped: int) -> bytes:
        try:
            return self.notice(dropped)
        except Exception:  # a notice is not worth the thread
            return _plain_notice(dropped)

    def _write(self, data: bytes) -> bool:
        """Write `data`, however long that takes. Returns false if it failed: the disk is full, or the reader gone."""
        if self._torn:
            data = b"\n" + data
        start = 0
        try:
            while start < len(data):
                try:
                    start += os.write(self._file, data[start : start + CHUNK])
                except BlockingIOError:  # another process has made the terminal or the pipe non-blocking
                    select.select([], [self._file], [])
        except (OSError, ValueError):
            self._torn = self._torn or start > 0
            return False
        self._torn = False
        return True

    # ---- in a child that was forked, which lacks the thread

    def forked(self) -> None:
        """Called in a child of `os.fork`: the queue belongs to the parent, whose thread the child lacks."""
        self._lock = threading.RLock()
        self._written = threading.Condition(self._lock)
        self._queue = SimpleQueue()
        self._lines = self._bytes = 0
        self._forked = True

    def _write_if_possible(self, text: bytes) -> None:
        try:
            if select.select([], [self._file], [], 0)[1]:
                os.write(self._file, text)
        except (OSError, ValueError):
            pass


def _plain_notice(dropped: int) -> bytes:
    return b"llmosd: %d lines were dropped here because nobody read them in time\n" % dropped


def _forked() -> None:
    for writer in tuple(_writers):
        writer.forked()


os.register_at_fork(after_in_child=_forked)
