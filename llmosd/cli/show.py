"""Tables and values on the terminal, or the same as JSON.

Called by the commands. It formats; it asks the daemon nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import IO, Any

import msgspec

from ipc.messages import Log
from ipc.syscalls import ModelInfo, ProcessInfo, ProgramInfo, SlotInfo, Stats


def value(data: Any, as_json: bool, file: IO[str] | None = None) -> None:
    """`data` as JSON; without `as_json` a text is printed as it is."""
    text = data if isinstance(data, str) and not as_json else msgspec.json.encode(data).decode()
    print(text, file=file or sys.stdout, flush=True)


def log_line(line: Log, as_json: bool, file: IO[str] | None = None) -> None:
    if as_json:
        value(line, as_json, file)
        return
    clock = time.strftime("%H:%M:%S", time.localtime(line.time))
    fields = " ".join(f"{name}={content!r}" for name, content in line.fields.items())
    print(f"{clock} [{line.pid}] {line.level}: {line.event} {fields}".rstrip(), file=file or sys.stdout, flush=True)


def processes(rows: Sequence[ProcessInfo], as_json: bool) -> None:
    if as_json:
        value(rows, as_json)
        return
    table(
        (
            "PID",
            "PARENT",
            "PROGRAM",
            "OWNER",
            "PRI",
            "STATE",
            "WAITS FOR",
            "AGE",
            "TOKENS IN/OUT",
            "MSGS IN/OUT",
            "BOX",
        ),
        [
            (
                row.pid,
                row.parent or "",
                row.program,
                row.owner,
                row.priority,
                row.state,
                row.waits_for,
                duration(row.age),
                f"{row.usage.prompt_tokens}/{row.usage.generated_tokens}",
                f"{row.usage.messages_received}/{row.usage.messages_sent}",
                row.mailbox,
            )
            for row in rows
        ],
    )


def slots(rows: Sequence[SlotInfo], as_json: bool) -> None:
    if as_json:
        value(rows, as_json)
        return
    table(
        ("MODEL", "STATE", "DRIVER PID", "USED/SLOTS", "QUEUED", "TOKENS", "TOKENS/S", "RESTARTS", "MEMORY"),
        [
            (
                row.model,
                f"{row.state} {row.detail}".strip(),
                row.driver_pid or "",
                f"{row.used}/{row.slots}",
                row.queued,
                row.tokens,
                row.tokens_per_second,
                row.restarts,
                size(row.memory),
            )
            for row in rows
        ],
    )
    sequences = [(row.model, sequence) for row in rows for sequence in row.sequences]
    if sequences:
        table(
            ("MODEL", "PID", "PROGRAM", "STATE", "PLACE", "PROMPT", "GENERATED", "LEASE"),
            [
                (
                    model,
                    sequence.pid,
                    sequence.program,
                    sequence.state,
                    sequence.position or "",
                    sequence.prompt_tokens,
                    sequence.generated_tokens,
                    sequence.lease,
                )
                for model, sequence in sequences
            ],
        )


def models(rows: Sequence[ModelInfo], as_json: bool) -> None:
    if as_json:
        value(rows, as_json)
        return
    table(
        ("MODEL", "DEFAULT", "DRIVER", "PATH", "STATE", "CONTEXT", "FACTS"),
        [
            (
                row.name,
                "*" if row.default else "",
                row.driver,
                row.path,
                f"{row.state} {row.detail}".strip(),
                row.context or "",
                " ".join(f"{name}={fact}" for name, fact in row.facts.items()),
            )
            for row in rows
        ],
    )


def programs(rows: Sequence[ProgramInfo], as_json: bool) -> None:
    if as_json:
        value(rows, as_json)
        return
    table(
        ("PROGRAM", "ARGUMENTS", "WHAT IT DOES", "FROM"),
        [(row.name, row.signature, row.summary or row.error.strip().rpartition("\n")[2], row.source) for row in rows],
    )


def stats(row: Stats, as_json: bool) -> None:
    if as_json:
        value(row, as_json)
        return
    machine = row.machine
    lines: list[tuple[str, object]] = [
        ("version", row.version),
        ("pid", row.pid),
        ("uptime", duration(row.uptime)),
        ("processes", row.processes),
        ("threads", row.threads),
        ("connections", row.connections),
        ("ended", _counts(row.exited)),
        ("calls", _counts(row.calls)),
        ("errors", _counts(row.errors)),
        ("limits reached", _counts(row.limits)),
        ("dead letters", row.dead_letters),
        ("slow steps", row.slow_steps),
        ("daemon memory", size(row.memory)),
        ("daemon cpu", duration(row.cpu_seconds)),
        ("machine cpu", f"{machine['cpu']:.0%} of {machine['cores']:.0f} cores"),
        ("machine memory", f"{size(machine['memory_available'])} free of {size(machine['memory_total'])}"),
    ]
    table(("WHAT", "VALUE"), lines)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A plain table in columns; cut to the terminal's width, and as wide as it is elsewhere."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    out = Table(box=None, pad_edge=False, header_style="bold")
    for name in header:
        numeric = bool(rows) and all(isinstance(row[header.index(name)], int | float) for row in rows)
        out.add_column(name.replace("-", " "), justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        out.add_row(*(Text(str(cell)) for cell in row))
    console = Console(soft_wrap=False)
    if not console.is_terminal:
        console.width = 10_000
    console.print(out)


def duration(seconds: float) -> str:
    """Such as 3.2s, 4m05s or 2h03m."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def size(count: float) -> str:
    """Such as 98 MB."""
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"
