"""The record of a suspension, for explanations: who suspended a process or a thread, and when.

`kernel.processes.control` makes it. A process that was suspended in a previous run of the daemon has none. It holds no
thread back: the dispatcher does.
"""

from __future__ import annotations

import time


class Suspension:
    """`by` and `program` name the process that made the call. `at` is the time by `time.monotonic`."""

    __slots__ = ("at", "by", "program")

    def __init__(self, by: int, program: str) -> None:
        self.at = time.monotonic()
        self.by = by
        self.program = program
