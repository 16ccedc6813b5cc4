"""Prints values as text or JSON: log lines, times and sizes.

Called by the commands; `llmosd.cli.table` prints tables. It never contacts the daemon.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import IO, Any

import msgspec

from ipc.messages import Log


def value(data: Any, as_json: bool, file: IO[str] | None = None) -> None:
    """Print `data` as JSON. Without `as_json`, print a string without quotes."""
    text = data if isinstance(data, str) and not as_json else msgspec.json.encode(data).decode()
    print(text, file=file or sys.stdout, flush=True)


def log_line(line: Log, as_json: bool, file: IO[str] | None = None) -> None:
    if as_json:
        value(line, as_json, file)
        return
    clock = time.strftime("%H:%M:%S", time.localtime(line.time))
    fields = " ".join(f"{name}={content!r}" for name, content in line.fields.items())
    print(f"{clock} [{line.pid}] {line.level}: {line.event} {fields}".rstrip(), file=file or sys.stdout, flush=True)


def duration(seconds: float) -> str:
    """Seconds as text, such as 3.2s, 4m05s or 2h03m."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def size(count: float) -> str:
    """A number of bytes as text, such as 98 MB."""
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def counts(numbers: Mapping[str, int]) -> str:
    """Counts by name as text, such as "a 1, b 2", or "none"."""
    return ", ".join(f"{name} {count}" for name, count in sorted(numbers.items())) or "none"
