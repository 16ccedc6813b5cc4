"""The report that SIGUSR1 writes to the log: the tables of the kernel, and where each thread is.

Called by the daemon on its loop. The number of lines and the length of each are bounded. It only reads, and a part that
cannot be read does not prevent the rest. It never waits.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from types import FrameType
from typing import Any

import structlog

from kernel.core.fiber import BLOCKED, READY
from kernel.core.process import Process, Thread
from kernel.kernel import Kernel
from llmosd.daemon.log_throttle import UNTHROTTLED

MAX_PROCESSES = 200
MAX_THREADS = 10  # of one process
MAX_AWAITS = 20  # coroutines of one thread, each of which awaits the next
MAX_FRAMES = 20  # of one thread of Linux
MAX_WORKERS = 100  # threads of Linux

Fields = dict[str, Any]

log = structlog.get_logger("llmosd")


def write_report(kernel: Kernel, queues: Callable[[], Fields]) -> None:
    """Write the report. `queues` describes the queues of the daemon itself."""
    parts: tuple[Callable[[], Iterator[tuple[str, Fields]]], ...] = (
        lambda: _totals(kernel, queues),
        lambda: _models(kernel),
        lambda: _processes(kernel),
        _linux_threads,
    )
    for part in parts:
        try:
            for event, fields in part():
                log.info(event, **fields, **{UNTHROTTLED: True})
        except Exception:
            log.exception("a part of the report failed")


def _totals(kernel: Kernel, queues: Callable[[], Fields]) -> Iterator[tuple[str, Fields]]:
    alive = kernel.table.alive.values()
    clients = sum(process.is_client for process in alive)
    yield (
        "report: totals",
        {
            "daemon_pid": os.getpid(),
            "processes": len(alive) - clients,
            "connections": clients,
            "threads": sum(len(process.threads) for process in alive),
            "calls": kernel.gate.calls,
            "errors": dict(kernel.gate.errors),
            "draining": kernel.lifecycle.draining,
            "ready_threads": sum(thread.state is READY for process in alive for thread in process.threads),
            "tool_threads": kernel.tools.workers.threads,
            **queues(),
        },
    )


def _models(kernel: Kernel) -> Iterator[tuple[str, Fields]]:
    for row in kernel.resources.slot_rows():
        fields = {
            name: getattr(row, name)
            for name in (
                "model",
                "state",
                "detail",
                "driver_pid",
                "slots",
                "given",
                "used",
                "queued",
                "swapped",
                "policy",
            )
        }
        yield "report: model", fields | {"sequences": [f"{one.pid}: {one.state}" for one in row.sequences]}


def _processes(kernel: Kernel) -> Iterator[tuple[str, Fields]]:
    alive = kernel.table.alive
    for pid in islice(sorted(alive), MAX_PROCESSES):
        process = alive[pid]
        yield "report: process", _process(process)
        for thread in islice(tuple(process.threads), MAX_THREADS):
            yield "report: thread", _thread(thread)
    if len(alive) > MAX_PROCESSES:
        yield "report: more processes", {"count": len(alive) - MAX_PROCESSES}


def _process(process: Process) -> Fields:
    state, waits_for = process.state()
    return {
        "pid": process.pid,
        "program": process.program,
        "parent": process.parent_pid,
        "owner": process.owner,
        "client": process.is_client,
        "state": state,
        "waits_for": waits_for,
        "dying": process.dying,
        "threads": len(process.threads),
        "children": len(process.children),
        "mailbox": 0 if process.mailbox is None else process.mailbox.count,
        "cpu_seconds": round(process.cpu_seconds, 3),
    }


def _thread(thread: Thread) -> Fields:
    waits = thread.waits_for.explain(thread).doing if thread.state is BLOCKED else ""
    return {
        "pid": thread.process.pid,
        "program": thread.process.program,
        "thread": thread.path,
        "name": thread.get_name(),
        "state": thread.shown_state(),
        "waits": waits,
        "seconds": round(thread.seconds_waiting, 3) if thread.stepped_at else None,
        "future": "" if thread.awaited_future is None else type(thread.awaited_future).__name__,
        "stack": coroutine_stack(thread.get_coro()),
    }


def coroutine_stack(coroutine: Any) -> list[str]:
    """Where a coroutine is, and the coroutines that it awaits; outermost first."""
    stack: list[str] = []
    while coroutine is not None and len(stack) < MAX_AWAITS:
        for kind in ("cr", "gi", "ag"):  # a coroutine, a generator, an asynchronous generator
            frame = getattr(coroutine, f"{kind}_frame", None)
            if isinstance(frame, FrameType):
                stack.append(_place(frame))
                coroutine = getattr(coroutine, f"{kind}_await" if kind != "gi" else "gi_yieldfrom", None)
                break
        else:
            break
    return stack


def _linux_threads() -> Iterator[tuple[str, Fields]]:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    here = threading.get_ident()
    frames = sys._current_frames()
    for ident, frame in islice(frames.items(), MAX_WORKERS):
        if ident != here:  # the loop, which writes this report
            yield "report: thread of Linux", {"name": names.get(ident, str(ident)), "stack": _stack(frame)}
    if len(frames) > MAX_WORKERS:
        yield "report: more threads of Linux", {"count": len(frames) - MAX_WORKERS}


def _stack(frame: FrameType | None) -> list[str]:
    """The innermost frames, outermost first."""
    stack: list[str] = []
    while frame is not None and len(stack) < MAX_FRAMES:
        stack.append(_place(frame))
        frame = frame.f_back
    return stack[::-1]


def _place(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}"
