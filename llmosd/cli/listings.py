"""The listings of `llmos`: the columns of each table, computed from the rows that the daemon returned.

Called by the commands. It never contacts the daemon.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

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
    SlotInfo,
    Stats,
    TaskInfo,
    ThreadInfo,
    ToolInfo,
)
from llmosd.cli import show
from llmosd.standard_streams import encodable

Columns = dict[str, Callable[[Any], object]]


def _of_part(columns: Columns, part: Callable[[Any], Any]) -> Columns:
    """Columns like `columns` that show one part of a row; `part` returns that part."""

    def cell_of(cell: Callable[[Any], object]) -> Callable[[Any], object]:
        return lambda row: cell(part(row))

    return {name: cell_of(cell) for name, cell in columns.items()}


PROCESS: Columns = {
    "PID": lambda row: row.pid,
    "PARENT": lambda row: row.parent or "",
    "PROGRAM": lambda row: row.program,
    "OWNER": lambda row: row.owner,
    "PRI": lambda row: row.priority,
    "STATE": lambda row: row.state,
    "WAITS FOR": lambda row: row.waits_for,
    "AGE": lambda row: show.duration(row.age),
    "CPU": lambda row: show.duration(row.usage.cpu_seconds),
    "TOKENS IN/OUT": lambda row: f"{row.usage.prompt_tokens}/{row.usage.generated_tokens}",
    "MSGS IN/OUT": lambda row: f"{row.usage.messages_received}/{row.usage.messages_sent}",
    "BOX": lambda row: row.mailbox,
}
THREAD: Columns = {
    "THREAD": lambda row: row.path,
    "NAME": lambda row: row.name,
    "PRI": lambda row: row.priority,
    "STATE": lambda row: row.state,
    "WAITS FOR": lambda row: row.waits_for,
    "CPU": lambda row: show.duration(row.cpu_seconds),
}
SLOT: Columns = {
    "MODEL": lambda row: row.model,
    "STATE": lambda row: f"{row.state} {row.detail}".strip(),
    "DRIVER PID": lambda row: row.driver_pid or "",
    "USED/GIVEN/SLOTS": lambda row: f"{row.used}/{row.given}/{row.slots}",
    "QUEUED": lambda row: row.queued,
    "TOKENS": lambda row: row.tokens,
    "TOKENS/S": lambda row: row.tokens_per_second,
    "RESTARTS": lambda row: row.restarts,
    "CORES": lambda row: row.cores or "",
    "MEMORY": lambda row: show.size(row.memory),
    "KV": lambda row: f"{show.size(row.kv_used)}/{show.size(row.kv_memory)}" if row.kv_memory else "",
    "PREFIX HITS": lambda row: f"{row.prompt_hits / row.prompt_tokens:.0%}" if row.prompt_tokens else "",
    "PREFIXES ON DISK": lambda row: show.size(row.kv_disk) if row.kv_disk else "",
    "SWAPPED": lambda row: row.swapped or "",
    "SWAPS OUT/IN/LOST": lambda row: f"{row.swap_outs}/{row.restores}/{row.recomputations}",
    "IDLE": lambda row: f"{show.duration(row.idle)}/{show.duration(row.keep_alive)}" if row.idle else "",
    "FEWER SLOTS BECAUSE": lambda row: row.cause,
    "NOT SWAPPED BECAUSE": lambda row: row.swap_refused,
    "POLICY": lambda row: row.policy_reason or row.policy,
}
POLICY: Columns = {
    "MODEL": lambda row: row.model,
    "POLICY": lambda row: row.kind,
    "QUANTUM": lambda row: row.quantum,
    "AGING": lambda row: row.aging,
    "WEIGHTS": lambda row: " ".join(f"{owner}={weight:g}" for owner, weight in row.weights.items()),
    "STARVATION": lambda row: row.starvation,
    "BECAUSE": lambda row: row.reason,
}
SEQUENCE: Columns = {
    "MODEL": lambda row: row[0],
    "PID": lambda row: row[1].pid,
    "PROGRAM": lambda row: row[1].program,
    "PRI": lambda row: row[1].priority,
    "STATE": lambda row: row[1].state,
    "PLACE": lambda row: row[1].position or "",
    "PROMPT": lambda row: row[1].prompt_tokens,
    "GENERATED": lambda row: row[1].generated_tokens,
    "LEASE": lambda row: row[1].lease,
    "PREEMPTED": lambda row: row[1].preemptions or "",
    "KV IN": lambda row: row[1].kept,
    "RECOMPUTED BECAUSE": lambda row: row[1].recomputed,
}
MODEL: Columns = {
    "MODEL": lambda row: row.name,
    "DEFAULT": lambda row: "*" if row.default else "",
    "DRIVER": lambda row: row.driver,
    "PATH": lambda row: row.path,
    "STATE": lambda row: f"{row.state} {row.detail}".strip(),
    "CONTEXT": lambda row: row.context or "",
    "FACTS": lambda row: " ".join(f"{name}={fact}" for name, fact in row.facts.items()),
}
PROGRAM: Columns = {
    "PROGRAM": lambda row: row.name,
    "ARGUMENTS": lambda row: row.signature,
    "WHAT IT DOES": lambda row: row.summary or _last_line(row.error),
    "FROM": lambda row: row.source,
}
TOOL: Columns = {
    "TOOL": lambda row: row.name,
    "ARGUMENTS": lambda row: row.signature,
    "WHAT IT DOES": lambda row: row.summary or _last_line(row.error),
    "RUNNING": lambda row: f"{row.running}/{row.concurrency}",
    "ABANDONED": lambda row: row.abandoned,
    "QUEUED": lambda row: row.queued,
    "CALLS": lambda row: row.calls,
    "FAILED": lambda row: row.failures,
    "FROM": lambda row: row.source,
}
HEADING: Columns = {
    "ID": lambda row: row.id,
    "TYPE": lambda row: row.type,
    "FROM": lambda row: row.sender,
    "TO": lambda row: row.recipient,
    "PRI": lambda row: row.priority,
    "CORRELATION": lambda row: row.correlation or "",
    "SIZE": lambda row: show.size(row.size),
}
DEAD_LETTER: Columns = {
    "TIME": lambda row: _clock(row.time),
    **_of_part(HEADING, lambda row: row.message),
    "WHY": lambda row: row.reason,
}
LOCK: Columns = {
    "KIND": lambda row: row.kind,
    "NAME": lambda row: row.name,
    "STATE": lambda row: row.state,
    "HELD BY": lambda row: _pids(row.holders),
    "WAITING": lambda row: _pids(row.waiters),
}
NAME: Columns = {
    "NAME": lambda row: row.name,
    "PID": lambda row: row.pid,
    "PROGRAM": lambda row: row.program,
}
REGION: Columns = {
    "REGION": lambda row: row.name,
    "VERSION": lambda row: row.version,
    "SIZE": lambda row: show.size(row.size),
    "OWNER": lambda row: row.owner,
    "ENDS WITH": lambda row: row.creator or "",
    "WATCHERS": lambda row: row.watchers,
}
CRASH: Columns = {
    "TIME": lambda row: _clock(row.time),
    "PID": lambda row: row.pid,
    "PARENT": lambda row: row.parent or "",
    "PROGRAM": lambda row: row.program,
    "REASON": lambda row: row.reason,
    "AGE": lambda row: show.duration(row.age),
    "UNREAD": lambda row: row.unread,
    "ERROR": lambda row: "" if row.error is None else f"{row.error.code}: {row.error.message}",
}
TASK: Columns = {
    "ID": lambda row: row.id,
    "PID": lambda row: row.pid or "",
    "PROGRAM": lambda row: row.program,
    "OWNER": lambda row: row.owner,
    "STATE": lambda row: row.state,
    "ATTEMPT": lambda row: row.attempt,
    "SUBMITTED": lambda row: time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.submitted)),
    "TOOK": lambda row: show.duration(row.ended - row.submitted) if row.ended else "",
    "ERROR": lambda row: row.error,
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


def rows(kind: type, items: Sequence[Any], as_json: bool) -> None:
    """Print `items`, all of type `kind`, as a table or as JSON."""
    if as_json:
        show.value(items, as_json)
    else:
        _print(LISTS[kind], items)


def tree(items: Sequence[ProcessInfo], root: int | None) -> None:
    """Print processes as a tree in the column of programs: all of them, or only `root` and its descendants."""
    children: dict[int, list[ProcessInfo]] = {}
    known = {item.pid for item in items}
    for item in items:
        children.setdefault(item.parent if item.parent in known else 0, []).append(item)
    lines: list[tuple[str, ProcessInfo]] = []
    starts = [item for item in items if item.pid == root] if root is not None else children.get(0, [])
    inner, last, line = ("├─ ", "└─ ", "│  ") if encodable("├└│─") else ("|- ", "`- ", "|  ")
    # An explicit stack, because a chain of descendants may exceed the recursion limit.
    stack = [("", "", item) for item in reversed(starts)]
    while stack:
        indent, branch, item = stack.pop()
        lines.append((indent + branch, item))
        below = children.get(item.pid, [])
        deeper = indent + {"": "", inner: line, last: "   "}[branch]
        branches = [inner] * (len(below) - 1) + [last] * bool(below)
        stack += [(deeper, turn, child) for turn, child in zip(reversed(branches), reversed(below), strict=True)]
    columns = _of_part(PROCESS, lambda row: row[1]) | {"PROGRAM": lambda row: row[0] + row[1].program}
    _print(columns, lines)


def slots(items: Sequence[SlotInfo], as_json: bool) -> None:
    """Print a table of the models in use, then a table of the sequences that hold a slot or wait for a slot."""
    if as_json:
        show.value(items, as_json)
        return
    _print(SLOT, items)
    sequences = [(row.model, sequence) for row in items for sequence in row.sequences]
    if sequences:
        _print(SEQUENCE, sequences)


def crash(report: CrashReport) -> None:
    """Print one crash report in full."""
    _print(CRASH, [report])
    usage = report.usage
    tokens = f"{usage.prompt_tokens}/{usage.generated_tokens} tokens in/out"
    messages = f"{usage.messages_received}/{usage.messages_sent} messages in/out"
    print(f"\nused: {show.duration(usage.cpu_seconds)} cpu, {tokens}, {messages}, {usage.calls} calls")
    for message in report.messages:
        print(f"received: message {message.id} {message.type} from {message.sender}, priority {message.priority}")
    for line in report.log:
        show.log_line(line, as_json=False)
    if report.error is not None:
        print(report.error.data.get("traceback", ""))


def stats(row: Stats, as_json: bool) -> None:
    """Print the counters of the daemon and the load of the machine."""
    if as_json:
        show.value(row, as_json)
        return
    machine = row.machine
    lines: list[tuple[str, object]] = [
        ("version", row.version),
        ("pid", row.pid),
        ("uptime", show.duration(row.uptime)),
        ("processes", row.processes),
        ("threads", row.threads),
        ("connections", row.connections),
        ("ended", show.counts(row.exited)),
        ("calls", show.counts(row.calls)),
        ("errors", show.counts(row.errors)),
        ("limits reached", show.counts(row.limits)),
        ("dead letters", row.dead_letters),
        ("slow steps", row.slow_steps),
        ("results not on disk yet", row.unwritten),
        ("daemon memory", show.size(row.memory)),
        ("daemon cpu", show.duration(row.cpu_seconds)),
        ("machine cpu", f"{machine['cpu']:.0%} of {machine['cores']:.0f} cores"),
        ("machine memory", f"{show.size(machine['memory_available'])} free of {show.size(machine['memory_total'])}"),
        ("machine disk", f"{show.size(machine['disk_free'])} free of {show.size(machine['disk_total'])}"),
        ("drivers memory", f"{show.size(machine['drivers_memory'])} of {show.size(machine['drivers_budget'])}"),
    ]
    lines += [(f"slots of {model}", scheduling) for model, scheduling in row.scheduling.items()]
    for gpu in row.gpus:
        used = f"{show.size(gpu.memory_used)} of {show.size(gpu.memory_total)} used"
        lines.append((gpu.name, f"{gpu.busy:.0%} busy, {used}"))
    show.table(("COUNTER", "VALUE"), lines)


def _print(columns: Columns, items: Sequence[Any]) -> None:
    show.table(tuple(columns), [tuple(cell(item) for cell in columns.values()) for item in items])


def _clock(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds))


def _pids(pids: Sequence[int]) -> str:
    return ", ".join(map(str, pids))


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]
