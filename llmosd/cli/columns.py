"""The columns of each listing, and their weights on a narrow screen.

`llmosd.cli.listings` prints them. They compute the text of a cell from a row that the daemon returned, and never
contact the daemon.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ipc.errors import ErrorInfo
from ipc.syscalls import (
    CrashReport,
    DeadLetter,
    Heading,
    LockInfo,
    ModelInfo,
    NameInfo,
    PolicyInfo,
    ProcessInfo,
    ProgramInfo,
    RegionInfo,
    TaskInfo,
    ThreadInfo,
    ToolInfo,
)
from llmosd.cli import show
from llmosd.cli.complaints import located
from llmosd.cli.table import KEY, Layout

Cell = Callable[[Any], object]


class Column(NamedTuple):
    """A column: `cell` returns its cell of a row, and `layout` says how it competes for room."""

    cell: Cell
    layout: Layout


Columns = dict[str, Column]


def key(cell: Cell) -> Column:
    """A column that identifies a row: it is always shown in full."""
    return Column(cell, Layout(KEY))


def whole(cell: Cell, weight: int) -> Column:
    """A column that is shown in full or not at all, such as one of numbers."""
    return Column(cell, Layout(weight))


def text(cell: Cell, weight: int, least: int) -> Column:
    """A column whose cells may be cut at their end to `least` cells of the screen."""
    return Column(cell, Layout(weight, least))


def path(cell: Cell, weight: int, least: int) -> Column:
    """A column like `text`, in which a path is cut at its beginning."""
    return Column(cell, Layout(weight, least, path=True))


def of_part(columns: Columns, part: Callable[[Any], Any]) -> Columns:
    """Columns like `columns` that show one part of a row; `part` returns that part."""

    def cell_of(cell: Cell) -> Cell:
        return lambda row: cell(part(row))

    return {name: column._replace(cell=cell_of(column.cell)) for name, column in columns.items()}


PROCESS: Columns = {
    "PID": key(lambda row: row.pid or row.task),
    "PARENT": whole(lambda row: row.parent or "", 1),
    "PROGRAM": path(lambda row: row.program, 50, 16),
    "OWNER": text(lambda row: row.owner, 2, 8),
    "PRI": whole(lambda row: row.priority, 4),
    "STATE": text(lambda row: row.state, 9, 10),
    "WAITS FOR": text(lambda row: row.waits_for, 7, 20),
    "AGE": whole(lambda row: show.duration(row.age), 5),
    "CPU": whole(lambda row: show.duration(row.usage.cpu_seconds), 4),
    "TOKENS IN/OUT": whole(lambda row: f"{row.usage.prompt_tokens}/{row.usage.generated_tokens}", 6),
    "MSGS IN/OUT": whole(lambda row: f"{row.usage.messages_received}/{row.usage.messages_sent}", 1),
    "BOX": whole(lambda row: row.mailbox, 2),
}
THREAD: Columns = {
    "THREAD": key(lambda row: row.path),
    "NAME": text(lambda row: row.name, 7, 10),
    "PRI": whole(lambda row: row.priority, 4),
    "STATE": text(lambda row: row.state, 9, 10),
    "WAITS FOR": text(lambda row: row.waits_for, 8, 20),
    "CPU": whole(lambda row: show.duration(row.cpu_seconds), 5),
}
SLOT: Columns = {
    "MODEL": text(lambda row: row.model, 50, 12),
    "STATE": text(lambda row: f"{row.state} {row.detail}".strip(), 9, 10),
    "DRIVER PID": whole(lambda row: row.driver_pid or "", 3),
    "USED/GIVEN/SLOTS": whole(lambda row: f"{row.used}/{row.given}/{row.slots}", 9),
    "QUEUED": whole(lambda row: row.queued, 8),
    "TOKENS": whole(lambda row: row.tokens, 4),
    "TOKENS/S": whole(lambda row: row.tokens_per_second, 8),
    "RESTARTS": whole(lambda row: row.restarts, 3),
    "CORES": whole(lambda row: row.cores or "", 1),
    "MEMORY": whole(lambda row: show.size(row.memory), 6),
    "KV": whole(lambda row: f"{show.size(row.kv_used)}/{show.size(row.kv_memory)}" if row.kv_memory else "", 6),
    "PREFIX HITS": whole(lambda row: f"{row.prompt_hits / row.prompt_tokens:.0%}" if row.prompt_tokens else "", 3),
    "PREFIXES ON DISK": whole(lambda row: show.size(row.kv_disk) if row.kv_disk else "", 1),
    "SWAPPED": whole(lambda row: row.swapped or "", 2),
    "SWAPS OUT/IN/LOST": whole(lambda row: f"{row.swap_outs}/{row.restores}/{row.recomputations}", 1),
    "IDLE": whole(lambda row: f"{show.duration(row.idle)}/{show.duration(row.keep_alive)}" if row.idle else "", 2),
    "FEWER SLOTS BECAUSE": text(lambda row: row.cause, 5, 14),
    "NOT SWAPPED BECAUSE": text(lambda row: row.swap_refused, 1, 14),
    "POLICY": text(lambda row: row.policy_reason or row.policy, 4, 8),
}
POLICY: Columns = {
    "MODEL": text(lambda row: row.model, 50, 12),
    "POLICY": whole(lambda row: row.kind, 9),
    "QUANTUM": whole(lambda row: row.quantum, 7),
    "AGING": whole(lambda row: row.aging, 6),
    "WEIGHTS": text(lambda row: " ".join(f"{owner}={weight:g}" for owner, weight in row.weights.items()), 8, 10),
    "STARVATION": whole(lambda row: row.starvation, 5),
    "BECAUSE": text(lambda row: row.reason, 4, 12),
}
SEQUENCE: Columns = {
    "MODEL": text(lambda row: row[0], 4, 10),
    "PID": key(lambda row: row[1].pid),
    "PROGRAM": path(lambda row: row[1].program, 50, 16),
    "PRI": whole(lambda row: row[1].priority, 6),
    "STATE": text(lambda row: row[1].state, 9, 10),
    "PLACE": whole(lambda row: row[1].position or "", 8),
    "PROMPT": whole(lambda row: row[1].prompt_tokens, 6),
    "GENERATED": whole(lambda row: row[1].generated_tokens, 7),
    "LEASE": whole(lambda row: row[1].lease, 3),
    "PREEMPTED": whole(lambda row: row[1].preemptions or "", 2),
    "KV IN": whole(lambda row: row[1].kept, 2),
    "RECOMPUTED BECAUSE": text(lambda row: row[1].recomputed, 1, 12),
}
MODEL: Columns = {
    "MODEL": text(lambda row: row.name, 50, 12),
    "DEFAULT": whole(lambda row: "*" if row.default else "", 7),
    "DRIVER": whole(lambda row: row.driver, 6),
    "PATH": path(lambda row: row.path, 5, 16),
    "STATE": text(lambda row: f"{row.state} {row.detail}".strip(), 9, 10),
    "CONTEXT": whole(lambda row: row.context or "", 8),
    "FACTS": text(lambda row: " ".join(f"{name}={fact}" for name, fact in row.facts.items()), 4, 16),
}
PROGRAM: Columns = {
    "PROGRAM": text(lambda row: row.name, 50, 12),
    "ARGUMENTS": text(lambda row: row.signature, 8, 24),
    "WHAT IT DOES": text(lambda row: row.summary or _last_line(row.error), 9, 30),
    "FROM": path(lambda row: row.source, 1, 16),
}
TOOL: Columns = {
    "TOOL": text(lambda row: row.name, 50, 12),
    "ARGUMENTS": text(lambda row: row.signature, 8, 16),
    "WHAT IT DOES": text(lambda row: row.summary or _last_line(row.error), 9, 16),
    "RUNNING": whole(lambda row: f"{row.running}/{row.concurrency}", 7),
    "ABANDONED": whole(lambda row: row.abandoned, 3),
    "QUEUED": whole(lambda row: row.queued, 6),
    "CALLS": whole(lambda row: row.calls, 5),
    "FAILED": whole(lambda row: row.failures, 4),
    "FROM": path(lambda row: row.source, 1, 16),
}
HEADING: Columns = {
    "ID": key(lambda row: row.id),
    "TYPE": text(lambda row: row.type, 9, 10),
    "FROM": whole(lambda row: row.sender, 8),
    "TO": text(lambda row: row.recipient, 5, 8),
    "PRI": whole(lambda row: row.priority, 6),
    "CORRELATION": whole(lambda row: row.correlation or "", 3),
    "SIZE": whole(lambda row: show.size(row.size), 7),
}
DEAD_LETTER: Columns = {
    "TIME": whole(lambda row: clock(row.time), 7),
    **of_part(HEADING, lambda row: row.message),
    "WHY": text(lambda row: row.reason, 9, 16),
}
LOCK: Columns = {
    "KIND": whole(lambda row: row.kind, 7),
    "NAME": text(lambda row: row.name, 50, 12),
    "STATE": text(lambda row: row.state, 8, 10),
    "HELD BY": text(lambda row: _pids(row.holders), 9, 10),
    "WAITING": text(lambda row: _pids(row.waiters), 6, 10),
}
NAME: Columns = {
    "NAME": text(lambda row: row.name, 50, 12),
    "PID": key(lambda row: row.pid),
    "PROGRAM": path(lambda row: row.program, 50, 16),
}
REGION: Columns = {
    "REGION": text(lambda row: row.name, 50, 12),
    "VERSION": whole(lambda row: row.version, 8),
    "SIZE": whole(lambda row: show.size(row.size), 9),
    "OWNER": text(lambda row: row.owner, 6, 8),
    "ENDS WITH": whole(lambda row: row.creator or "", 5),
    "WATCHERS": whole(lambda row: row.watchers, 7),
}
CRASH: Columns = {
    "TIME": whole(lambda row: clock(row.time), 7),
    "PID": key(lambda row: row.pid),
    "PARENT": whole(lambda row: row.parent or "", 3),
    "PROGRAM": path(lambda row: row.program, 50, 16),
    "REASON": whole(lambda row: row.reason, 6),
    "AGE": whole(lambda row: show.duration(row.age), 4),
    "UNREAD": whole(lambda row: row.unread, 2),
    "ERROR": text(lambda row: "" if row.error is None else _error(row.error), 9, 20),
}
TASK: Columns = {
    "ID": key(lambda row: row.id),
    "PID": key(lambda row: row.pid or row.last_pid or ""),
    "PROGRAM": path(lambda row: row.program, 50, 8),
    "OWNER": text(lambda row: row.owner, 2, 8),
    "STATE": whole(lambda row: row.state, 9),
    "ATTEMPT": whole(lambda row: row.attempt, 1),
    "SUBMITTED": whole(lambda row: time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.submitted)), 3),
    "TOOK": whole(lambda row: show.duration(row.ended - row.submitted) if row.ended else "", 4),
    "ERROR": text(lambda row: row.error, 8, 8),
    "ARGUMENTS": text(lambda row: row.arguments, 7, 12),
    "RESULT": text(lambda row: row.result or row.waits_for, 6, 10),
}
LISTS: dict[type, Columns] = {
    ProcessInfo: PROCESS,
    ThreadInfo: THREAD,
    ModelInfo: MODEL,
    PolicyInfo: POLICY,
    ProgramInfo: PROGRAM,
    ToolInfo: TOOL,
    Heading: HEADING,
    DeadLetter: DEAD_LETTER,
    LockInfo: LOCK,
    NameInfo: NAME,
    RegionInfo: REGION,
    CrashReport: CRASH,
    TaskInfo: TASK,
}


def _error(error: ErrorInfo) -> str:
    return f"{error.code}: {located(error.message, error.data)}"


def clock(seconds: float) -> str:
    """The time of day, in seconds since the epoch, as text."""
    return time.strftime("%H:%M:%S", time.localtime(seconds))


def _pids(pids: Sequence[int]) -> str:
    return ", ".join(map(str, pids))


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]
