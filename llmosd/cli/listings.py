"""Prints the listings of `llmos`: the rows that the daemon returned, as tables or JSON.

Called by the commands; `llmosd.cli.columns` defines the columns. It never contacts the daemon.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from ipc.syscalls import CrashReport, ProcessInfo, SlotInfo, Stats, TaskInfo
from llmosd.cli import show
from llmosd.cli.columns import CRASH, LISTS, PROCESS, SEQUENCE, SLOT, Columns, clock, of_part, text
from llmosd.cli.table import GAP, KEY, Layout, cells, print_table, screen_width, shorten
from llmosd.printable import printable, printable_line
from llmosd.standard_streams import encodable

DEEPEST = (
    300  # characters of the lines that lead to a process in a tree: a long chain of children would fill the memory
)


def rows(kind: type, items: Sequence[Any], as_json: bool, wide: bool = False) -> None:
    """Print `items`, all of type `kind`, as a table or as JSON."""
    if as_json:
        show.value(items, as_json)
    else:
        _print(LISTS[kind], items, wide)


def task_line(row: TaskInfo, as_json: bool, wide: bool = False) -> None:
    """Print one line about a task: when it was submitted or ended, its call, and its error or its result."""
    if as_json:
        show.value(row, as_json)
        return
    took = f" in {show.duration(row.ended - row.submitted)}" if row.ended else ""
    parts = [clock(row.ended or row.submitted), row.id, f"{row.pid or row.last_pid or '':>6}", f"{row.state}{took}"]
    head = printable_line("  ".join(parts)) + "  "
    program = printable_line(f"{row.program}({row.arguments})")
    outcome = printable_line(row.error or row.result or row.waits_for)
    if not wide and sys.stdout.isatty():
        ellipsis = "…" if encodable("…") else "..."
        room = max(screen_width() - cells(head), 0)
        program = shorten(program, room - min(cells(outcome) + GAP, room // 2) if outcome else room, ellipsis)
        outcome = shorten(outcome, max(room - cells(program) - GAP, 0), ellipsis)
    print(f"{head}{program}{' ' * GAP}{outcome}".rstrip(), flush=True)


def tree(items: Sequence[ProcessInfo], root: int | None, wide: bool = False) -> None:
    """Print processes as a tree in the column of programs: all of them, or only `root` and its descendants."""
    columns = of_part(PROCESS, lambda row: row[1]) | {"PROGRAM": text(lambda row: row[0] + row[1].program, 50, 16)}
    _print(columns, branches(items, root, ascii_only=not encodable("├─└│")), wide)


def branches(
    items: Sequence[ProcessInfo], root: int | None = None, *, ascii_only: bool = False
) -> list[tuple[str, ProcessInfo]]:
    """Processes in the order of a tree, each with the lines that lead to it: all, or `root` and its descendants."""
    line, last, down = ("|- ", "`- ", "|  ") if ascii_only else ("├─ ", "└─ ", "│  ")
    children: dict[int, list[ProcessInfo]] = {}
    known = {item.pid for item in items}
    for item in items:
        children.setdefault(item.parent if item.parent in known else 0, []).append(item)
    lines: list[tuple[str, ProcessInfo]] = []
    starts = [item for item in items if item.pid == root] if root is not None else children.get(0, [])
    # An explicit stack, because a chain of descendants may exceed the recursion limit.
    stack = [("", "", item) for item in reversed(starts)]
    while stack:
        indent, branch, item = stack.pop()
        lines.append((indent + branch, item))
        below = children.get(item.pid, [])
        deeper = indent + {"": "", line: down, last: "   "}[branch] if len(indent) < DEEPEST else indent
        turns = [line] * (len(below) - 1) + [last] * bool(below)
        stack += [(deeper, turn, child) for turn, child in zip(reversed(turns), reversed(below), strict=True)]
    return lines


def slots(items: Sequence[SlotInfo], as_json: bool, wide: bool = False) -> None:
    """Print a table of the models in use, then a table of the sequences that hold a slot or wait for a slot."""
    if as_json:
        show.value(items, as_json)
        return
    _print(SLOT, items, wide)
    sequences = [(row.model, sequence) for row in items for sequence in row.sequences]
    if sequences:
        _print(SEQUENCE, sequences, wide)


def crash(report: CrashReport, wide: bool = False) -> None:
    """Print one crash report in full."""
    _print(CRASH, [report], wide)
    usage = report.usage
    tokens = f"{usage.prompt_tokens}/{usage.generated_tokens} tokens in/out"
    messages = f"{usage.messages_received}/{usage.messages_sent} messages in/out"
    print(f"\nused: {show.duration(usage.cpu_seconds)} cpu, {tokens}, {messages}, {usage.calls} calls")
    for message in report.messages:
        kind = printable_line(message.type)
        print(f"received: message {message.id} {kind} from {message.sender}, priority {message.priority}")
    for line in report.log:
        show.log_line(line, as_json=False)
    if report.error is not None:
        text = report.error.data.get("traceback") or f"{report.error.code}: {report.error.message}"
        print(printable(str(text)))


def stats(row: Stats, as_json: bool, wide: bool = False) -> None:
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
    print_table({"COUNTER": Layout(KEY), "VALUE": Layout(1, 20)}, lines, wide=wide)


def _print(columns: Columns, items: Sequence[Any], wide: bool) -> None:
    layouts = {name: column.layout for name, column in columns.items()}
    print_table(layouts, [[column.cell(item) for column in columns.values()] for item in items], wide=wide)
