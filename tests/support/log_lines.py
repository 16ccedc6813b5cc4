"""The pipeline of the daemon's log without its thread: collects the finished lines.

Used by the tests of the daemon's log. It configures no global logger, and its clock stands still.
"""

from __future__ import annotations

import json
from typing import Any, cast

from llmosd.daemon.log_writer import LogWriter
from llmosd.daemon.logs import DaemonLog, Style


class _Collector:
    """Stands for a `LogWriter`."""

    def __init__(self) -> None:
        self.texts: list[bytes] = []
        self.notice: Any = None

    def write(self, text: bytes) -> None:
        self.texts.append(text)


class CollectedLog:
    """A log whose lines are collected. `logger` writes to it; `now` is the time of its clock."""

    def __init__(self, style: Style = "json", *, terminal: bool = False) -> None:
        self.now = 0.0
        self.writer = _Collector()
        self.log = DaemonLog(cast("LogWriter", self.writer), terminal=terminal, clock=lambda: self.now)
        self.log.configure("debug", style)
        self.logger = self.log.logger

    @property
    def lines(self) -> list[str]:
        return [text.decode() for text in self.writer.texts]

    def fields(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]
