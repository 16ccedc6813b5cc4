"""Printed text: turns what agents and their tools print or pass to `logging` into lines of the logs of their processes.

The streams and the handler of `kernel.processes.stdio` call it from any thread of Linux. It also repeats each line,
with its process, in the log of the daemon. It never blocks the loop: there a line is written immediately. Lines from
other threads wait in a bounded queue for their turn on the loop.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog

from ipc.messages import Log
from kernel.core.process import MAIN, Process, Thread
from kernel.programs.origin import ORIGIN

MAX_LINE = 16_384  # characters of a printed line; the rest is left out
MAX_LINES_PER_WRITE = 1_000  # of one text; more would hold the loop for too long
MAX_PARTIAL = 1_000  # lines of one process that still lack their newline, one for each thread of Linux
MAX_QUEUED_LINES = 1_000  # of one process, from threads other than the loop's
MAX_QUEUED_CHARACTERS = 1 << 20  # the same
PATIENCE = 0.1  # seconds that a thread waits for room in the full queue of its process, before its lines are dropped
LINES_PER_TURN = 256  # lines from other threads that are written in one turn of the loop

ECHO_RATE, ECHO_BURST = 100.0, 1_000.0  # lines per second, and lines at once, that the log of the daemon repeats
ECHO_CHARACTERS = 2_000  # of each of them

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}  # as in `logging`

log = structlog.get_logger("kernel.processes")


class PartialLine:
    """Text without its newline. Text after a carriage return replaces the text before it, as on a terminal."""

    __slots__ = ("_omitted", "_text", "overwrites")

    def __init__(self) -> None:
        self._text = ""
        self._omitted = 0
        self.overwrites = False  # it has a carriage return, so it is probably a progress bar

    def add(self, text: str, start: int, end: int) -> None:
        """Append `text[start:end]`."""
        if start == end:
            return
        back = text.rfind("\r", start, end - 1)  # not the last character: the newline of "\r\n" may follow
        if back >= start or self._text.endswith("\r"):
            self._text, self._omitted, self.overwrites = "", 0, True
            start = max(back + 1, start)
        room = max(MAX_LINE - len(self._text), 0)
        self._omitted += max(end - start - room, 0)
        self._text += text[start : min(end, start + room)]
        self.overwrites = self.overwrites or self._text.endswith("\r")

    def finish(self) -> str:
        """The whole line."""
        text = self._text.rstrip("\r")
        return f"{text}… ({self._omitted} more characters)" if self._omitted else text


class LineQueue:
    """Lines of one origin that wait for the loop. `omitted` counts the lines that found it full."""

    __slots__ = ("characters", "lines", "omitted")

    def __init__(self) -> None:
        self.lines: deque[Log] = deque()
        self.characters = 0
        self.omitted = 0

    @property
    def full(self) -> bool:
        return len(self.lines) >= MAX_QUEUED_LINES or self.characters >= MAX_QUEUED_CHARACTERS

    def push(self, line: Log) -> None:
        self.lines.append(line)
        self.characters += len(line.event)

    def pop(self) -> Log:
        """The next line, or after the last one a line that reports the omitted lines."""
        if self.lines:
            line = self.lines.popleft()
            self.characters -= len(line.event)
            return line
        count, self.omitted = self.omitted, 0
        return _omission(count)

    def __bool__(self) -> bool:
        return bool(self.lines or self.omitted)


class Printing:
    """The printed text of all processes, and of the daemon. Made by the kernel, in the thread of the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float] = time.monotonic) -> None:
        self._loop = loop
        self._loop_thread = threading.get_ident()
        self._clock = clock
        # By origin, then by thread of Linux and kind, so that lines of two threads do not mix.
        self._partial: dict[Any, dict[tuple[int, str], PartialLine]] = {}
        self._queues: dict[Any, LineQueue] = {}
        # Reentrant, because the garbage collector may run a finalizer that prints while the thread has it.
        self._room = threading.Condition(threading.RLock())
        self._scheduled = False
        self._closed = False
        self._allowance, self._allowed_at, self._unechoed = ECHO_BURST, clock(), 0
        self._echoing = False

    # ---- from any thread

    @property
    def bypassed(self) -> bool:
        """Whether this thread writes text of the daemon: its log, or a last message after the end of the kernel."""
        return (self._echoing or self._closed) and threading.get_ident() == self._loop_thread

    def write(self, kind: str, text: str) -> None:
        """Take text that was written to "stdout" or "stderr", which is the `kind`."""
        origin = self._origin()
        if self._closed or self._replays(origin):
            return
        key, holder = (threading.get_ident(), kind), _holder(origin)
        partial = self._partial.get(holder, {}).pop(key, None) or PartialLine()
        start = lines = 0
        while (end := text.find("\n", start)) >= 0:
            if lines == MAX_LINES_PER_WRITE:
                rest = text.count("\n", start)
                self._line(origin, _omission(rest))
                start = text.rindex("\n") + 1
                break
            partial.add(text, start, end)
            self._line(origin, _printed(kind, partial))
            partial, start, lines = PartialLine(), end + 1, lines + 1
        if start < len(text) or not lines:
            partial.add(text, start, len(text))
            partials = self._partial.setdefault(holder, {})
            if len(partials) < MAX_PARTIAL:
                partials[key] = partial
            else:
                self._line(origin, _printed(kind, partial))

    def flush(self, kind: str) -> None:
        """Write the text without a newline that this thread has printed last, unless it is a progress bar."""
        origin = self._origin()
        partials = self._partial.get(_holder(origin))
        if not partials:
            return
        partial = partials.pop((threading.get_ident(), kind), None)
        if partial is None:
            return
        if partial.overwrites:
            partials[threading.get_ident(), kind] = partial
        else:
            self._line(origin, _printed(kind, partial))

    def record(self, level: str, event: str, fields: dict[str, Any]) -> None:
        """Take a record of `logging`. The texts must be encodable (`kernel.lib.failures.bounded`)."""
        origin = self._origin()
        if not self._replays(origin):
            self._line(origin, Log(0, time.time(), level, event, fields))

    # ---- on the loop

    def process_ended(self, process: Process) -> None:
        """Write all text that still waits: the last lines of `process` precede its end."""
        if process in self._queues:
            with self._room:
                queue = self._queues.pop(process, None)
                self._room.notify_all()
            while queue:
                self._write(process, queue.pop())
        if process in self._partial:
            for (_, kind), partial in tuple(self._partial.pop(process).items()):
                self._write(process, _printed(kind, partial))

    def close(self) -> None:
        """Drop all text from now on, because only threads of abandoned tools are left. None of them waits any more."""
        with self._room:
            self._closed = True
            self._room.notify_all()

    def after_fork(self) -> None:
        """Replace the lock in a forked child, where the thread that may hold it does not exist."""
        self._room = threading.Condition(threading.RLock())

    # ---- inside

    def _origin(self) -> Any:
        """The process or the file whose code runs now. None: the kernel, or a thread without a known process."""
        if threading.get_ident() == self._loop_thread:
            task = asyncio.current_task(self._loop)
            if isinstance(task, Thread):
                return task.process
            if task is not None:  # a task of the kernel, which may have inherited the origin of an agent
                return None
        return ORIGIN.get()

    def _replays(self, origin: Any) -> bool:
        """Whether the text was written before, in the previous run of the daemon."""
        if not isinstance(origin, Process) or origin.durable is None:
            return False
        task = asyncio.current_task(self._loop) if threading.get_ident() == self._loop_thread else None
        return origin.durable.is_replaying(task.path if isinstance(task, Thread) else MAIN)

    def _line(self, origin: Any, line: Log) -> None:
        if threading.get_ident() == self._loop_thread:
            self._write(origin, line)
            return
        if not isinstance(origin, Process | str):
            line.fields.update(process="unknown", thread=threading.current_thread().name)
        with self._room:
            full = queue = self._queues.setdefault(origin, LineQueue())
            if full.full and not full.omitted and not self._closed:
                self._room.wait_for(lambda: not full.full or self._closed, PATIENCE)
                queue = self._queues.setdefault(origin, full)  # the loop removes an empty queue
            if self._closed:
                return
            if queue.full:
                queue.omitted += 1
            else:
                queue.push(line)
            if self._scheduled:
                return
            self._scheduled = True
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._write_queued)

    def _write_queued(self) -> None:
        batch: list[tuple[Any, Log]] = []
        with self._room:
            while self._queues and len(batch) < LINES_PER_TURN:
                for origin, queue in tuple(self._queues.items()):
                    batch.append((origin, queue.pop()))
                    if not queue:
                        del self._queues[origin]
            self._scheduled = bool(self._queues)
            self._room.notify_all()
        if self._scheduled:
            self._loop.call_soon(self._write_queued)
        for origin, line in batch:
            self._write(origin, line)

    def _write(self, origin: Any, line: Log) -> None:
        if isinstance(origin, Process) and not origin.is_client:
            origin.write_log(Log(origin.pid, line.time, line.level, line.event, line.fields))
        self._echo(origin, line)

    def _echo(self, origin: Any, line: Log) -> None:
        """Repeat `line` in the log of the daemon, which may be a file: at most `ECHO_RATE` lines per second."""
        now = self._clock()
        self._allowance = min(self._allowance + (now - self._allowed_at) * ECHO_RATE, ECHO_BURST)
        self._allowed_at = now
        if self._allowance < (ECHO_RATE if self._unechoed else 1):  # pause for a second, to report the pause once
            self._unechoed += 1
            return
        self._allowance -= 1
        text = line.event if len(line.event) <= ECHO_CHARACTERS else line.event[:ECHO_CHARACTERS] + "…"
        source = _source(origin) if line.level in LEVELS else _source(origin) | {"output": line.level}
        self._echoing = True
        try:  # an error of the disk or the terminal must not reach the agent that prints
            if self._unechoed:
                count, self._unechoed = self._unechoed, 0
                log.warning("lines of processes left out here; `llmos logs` shows the last of each", lines=count)
            log.log(LEVELS.get(line.level, LEVELS["info"]), text, **source, **line.fields)
        except Exception:
            self._unechoed += 1
        finally:
            self._echoing = False


def _holder(origin: Any) -> Any:
    """The key of text of `origin` that lacks its newline. Nothing would remove the text of an ended process."""
    return None if isinstance(origin, Process) and origin.ended else origin


def _source(origin: Any) -> dict[str, Any]:
    """Names `origin` in the log of the daemon."""
    if isinstance(origin, Process):
        return {"pid": origin.pid, "program": origin.program}
    return {"file": origin} if isinstance(origin, str) else {}


def _printed(kind: str, partial: PartialLine) -> Log:
    text = partial.finish()
    if not text.isascii():
        text = text.encode(errors="backslashreplace").decode()  # half surrogates
    return Log(0, time.time(), kind, text, {})


def _omission(count: int) -> Log:
    return Log(0, time.time(), "warning", "printed lines left out: there were too many at once", {"lines": count})
