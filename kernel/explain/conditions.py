"""The facts about processes and threads that are blocked by no wait: suspended, ready, ending or ended.

Called by the explainer. It reads processes and changes nothing.
"""

from __future__ import annotations

import time

from ipc.syscalls import WaitFacts
from kernel.core.fiber import NEW, READY
from kernel.core.plain_wait import named
from kernel.core.process import Process, Thread
from kernel.lib.wording import counted, quoted, show_seconds
from kernel.processes.exit import GRACE
from kernel.tasks.running import RunningTask, id_text

MAX_ERROR = 200  # characters of an error


def suspended(process: Process, thread: Thread | None) -> WaitFacts:
    """A process that is suspended; with `thread`, only that thread is."""
    suspension = (process.suspensions or {}).get(thread)
    option = "" if thread is None else f" --thread {thread.path}"
    by = "in a previous run of the daemon" if suspension is None else ""
    if suspension is not None:
        by = f"by process {suspension.by} ({quoted(suspension.program)})"
    return WaitFacts(
        kind="suspended",
        doing=f"suspended {by}",
        seconds=None if suspension is None else time.monotonic() - suspension.at,
        ends=f"a process resumes it, as `llmos resume {process.pid}{option}` does",
    )


def not_waiting(thread: Thread) -> WaitFacts:
    """A thread that runs, or that the dispatcher runs soon."""
    if thread.state == READY:
        return WaitFacts(kind="ready", doing="ready, and runs on one of the next turns of the loop")
    if thread.state == NEW:
        return WaitFacts(kind="new", doing="new, and runs on one of the next turns of the loop")
    return WaitFacts(kind="running", doing="running, and waits for nothing")


def without_threads(process: Process) -> WaitFacts:
    """A connection that serves no request, or a process that was made just now."""
    if process.is_client:
        return WaitFacts(kind="requests", doing="the connection of a client, and waits for its requests")
    return WaitFacts(kind="new", doing="new, and runs on one of the next turns of the loop")


def ending(process: Process) -> WaitFacts:
    """A process that is dying: its threads or children have not ended yet."""
    threads, children = len(process.threads), len(process.children)
    left = [counted(number, *words) for number, words in ((threads, ("thread",)), (children, ("child", "children")))
            if number]  # fmt: skip
    return WaitFacts(
        kind="ending",
        doing=f"ending ({process.dying})",
        state=f"Its {' and '.join(left)} {'has' if threads + children == 1 else 'have'} not ended yet" if left else "",
        holders=named(process.children),
        holder_count=children,
        held="Its children are" if children else "",
        ends=f"its `finally` blocks are done; after {GRACE:g} s the kernel abandons the threads",
    )


def ended(process: Process) -> WaitFacts:
    """A process that has ended."""
    status = process.status
    assert status is not None
    when = show_seconds(time.monotonic() - process.ended_at) + " ago" if process.ended_at else "in a previous run"
    pid = process.pid
    if status.error is None:
        return WaitFacts(kind="ended", doing=f"ended {when} (done)", state=f"`llmos wait {pid}` shows its result")
    message = status.error.message
    error = message if len(message) <= MAX_ERROR else message[: MAX_ERROR - 3] + "..."
    shows = f"`llmos crashes {pid}` shows more" if status.reason != "killed" else f"`llmos logs {pid}` shows its log"
    code = "" if status.error.code == "Killed" else f"{status.error.code}: "
    return WaitFacts(kind="ended", doing=f"ended {when} ({status.reason}): {code}{error.rstrip('.')}", state=shows)


def unwritten(process: Process, task: RunningTask) -> WaitFacts:
    """A process that has ended, and whose end is not on disk yet."""
    status = process.status
    reason = "" if status is None else f" ({status.reason})"
    refused = "; the disk refused the first attempt to write it, and the journal tries again" if task.delayed else ""
    return WaitFacts(
        kind="journal",
        doing="waiting for the journal to write its result",
        seconds=time.monotonic() - process.ended_at,
        state=f"It has ended{reason}, and the end of its task {id_text(task.id)} is not on disk yet{refused}",
        ends="the disk has written the result, which clients then get",
    )
