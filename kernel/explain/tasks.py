"""The explanation of a task that has no process: it waits for its program, is held back, or has ended.

Called by the explainer. It reads what the task subsystem says about the task, and changes nothing.
"""

from __future__ import annotations

import msgspec

from ipc.syscalls import Explanation, WaitFacts
from kernel.explain.paragraph import paragraph
from kernel.lib.wording import show_seconds
from kernel.tasks.outline import TaskOutline
from kernel.tasks.trials import HELD_BACK
from kernel.tasks.waiting import WAITING


def explanation(outline: TaskOutline) -> Explanation:
    """Explain the task."""
    explained = Explanation(
        pid=outline.pid,
        program=outline.program,
        state=outline.state,
        waits_for=outline.reason,
        thread="",
        threads=0,
        wait=_facts(outline),
        task=outline.id,
    )
    return msgspec.structs.replace(explained, text=paragraph(explained))


def _facts(outline: TaskOutline) -> WaitFacts:
    kill = f"`llmos kill {outline.id}` ends it"
    if outline.state == WAITING:
        again = "" if outline.retry is None else f", and in {show_seconds(outline.retry)} at the latest"
        return WaitFacts(
            kind="program",
            doing="waiting to restart",
            seconds=outline.seconds,
            state=outline.reason,
            ends=f"it can restart; the daemon tries again when a file of programs changes, at SIGHUP{again}",
            next=f"it loses nothing meanwhile; {kill}",
        )
    if outline.state == HELD_BACK:
        return WaitFacts(
            kind="trial",
            doing="held back",
            state=outline.reason,
            ends="the tasks before it have ended, or have run for long enough",
            next=kill,
        )
    if outline.ended is not None:
        error = f": {outline.error}" if outline.error else ""
        shows = f"`llmos attach {outline.id}` shows its " + ("error" if outline.error else "result")
        when = show_seconds(outline.ended)
        return WaitFacts(kind="ended", doing=f"ended {when} ago ({outline.state}){error}", state=shows)
    doing = "ending, and its end is not on disk yet" if outline.state == "ending" else "accepted, and begins soon"
    return WaitFacts(kind="journal" if outline.state == "ending" else "recovery", doing=doing)
