"""Throttles log lines that repeat, such as those about a client that sends garbage in an endless loop.

A processor of the log. Lines with the same event count as the same if their fields differ only in numbers, except the
pid: lines about two processes are two facts. Of the same line, `BURST` get through in each window of `WINDOW` seconds,
and of one event, `EVENT_BURST` do, however its fields differ. After the window one line reports how many were left out.
The first line of an event always gets through, and so does every line for debugging.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import Any

import structlog

WINDOW = 10.0  # seconds
BURST = 20  # lines of one window that are the same
EVENT_BURST = 500  # lines of one window with the same event
MAX_KEYS = 10_000  # different lines that are counted; if there are more, the window ends early
MAX_KEY_TEXT = 200  # characters of a field that distinguish lines
UNTHROTTLED = "unthrottled"  # a field that exempts its line

_NUMBER = re.compile(r"\d+")


class _Event:
    """The lines of one event in this window."""

    __slots__ = ("level", "lines", "omitted", "same")

    def __init__(self, level: str) -> None:
        self.level = level
        self.lines = 0
        self.omitted = 0
        self.same: dict[tuple[Any, ...], int] = {}


class Throttle:
    """Counts the lines of the current window. `report` gets the level, the event and the count of omitted lines."""

    def __init__(self, report: Callable[[str, str, int], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._report = report
        self._clock = clock
        self._lock = threading.RLock()  # reentrant: a finalizer may log while its thread holds it
        self._began = clock()
        self._events: dict[str, _Event] = {}
        self._keys = 0
        self._omitted = 0

    def __call__(self, _logger: Any, method: str, fields: Any) -> Any:
        """Pass the line on, or drop it. The fields must be plain values."""
        if fields.pop(UNTHROTTLED, False) or fields.get("level") == "debug":
            return fields
        with self._lock:
            ended = self._end_of_window(full=self._keys >= MAX_KEYS)
            passes = self._count(method, fields)
        self._report_all(ended)
        if not passes:
            raise structlog.DropEvent
        return fields

    def poll(self) -> None:
        """Report the omitted lines of a window that has ended. Called now and then, because no further line may do."""
        if self._omitted:
            with self._lock:
                ended = self._end_of_window()
            self._report_all(ended)

    def flush(self) -> None:
        """Report the omitted lines of this window now."""
        with self._lock:
            ended = self._end_of_window(full=True)
        self._report_all(ended)

    # ---- inside

    def _count(self, method: str, fields: Any) -> bool:
        name = str(fields.get("event"))[:MAX_KEY_TEXT]
        event = self._events.get(name)
        if event is None:
            event = self._events[name] = _Event(str(fields.get("level", method)))
            self._keys += 1
        key = tuple(
            (field, _NUMBER.sub("0", value[:MAX_KEY_TEXT]) if isinstance(value, str) else value)
            for field, value in fields.items()
            if field == "pid" or (isinstance(value, str) and field not in ("event", "timestamp"))
        )
        count = event.same.get(key, 0)
        if not count:
            self._keys += 1
        event.same[key] = count + 1
        if count < BURST and event.lines < EVENT_BURST:
            event.lines += 1
            return True
        event.omitted += 1
        self._omitted += 1
        return False

    def _end_of_window(self, *, full: bool = False) -> dict[str, _Event]:
        """Begin a new window if this one has ended. Returns the events of the old one."""
        now = self._clock()
        if not full and now - self._began < WINDOW:
            return {}
        ended, self._events = self._events, {}
        self._began, self._keys, self._omitted = now, 0, 0
        return ended

    def _report_all(self, ended: dict[str, _Event]) -> None:
        for name, event in ended.items():
            if event.omitted:
                self._report(event.level, name, event.omitted)
