"""The events of a task. Over the death of the daemon: who lost it comes back when it does, and goes on where it was.

Called by `llmos attach`, and by `llmos run` for a task that ends with it. No event is told twice in one life of the
daemon; a task that had to begin anew says so.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

from ipc.errors import ConnectionLost, NoDaemon, ShuttingDown, TimedOut
from ipc.messages import Event
from llmosd.client.blocking import FOREVER, Client, Task

PATIENCE = 10.0  # seconds for the daemon to come back
PAUSE = 0.1  # seconds between two attempts


def attached(task: Task, timeout: float | None) -> Iterator[Event]:
    """All events of a task that ends with its client. Raises `TimedOut`, which is then the end of the task."""
    try:
        yield from task.events(timeout)
    except TimedOut:
        raise TimedOut(f"no result within {timeout} s, and so the task ends; with --detach it would go on") from None


def events(client: Client, task: Task, timeout: float | None) -> Iterator[Event]:
    """All events of `task` from now on. Raises `TimedOut`, and `ConnectionLost` if the daemon does not come back."""
    until = FOREVER if timeout is None else time.monotonic() + timeout
    while True:
        try:
            yield from task.events(None if timeout is None else max(until - time.monotonic(), 0.0))
            return
        except ConnectionLost as lost:
            print("llmos: the daemon is gone; waiting for it to come back", file=sys.stderr)
            task = _found_again(client, task, lost, until)


def _found_again(client: Client, task: Task, lost: ConnectionLost, until: float) -> Task:
    give_up = time.monotonic() + PATIENCE
    while True:
        client.close()
        try:
            client.connect()
            return client.attach(task.id, after=task.seen)
        except (NoDaemon, ConnectionLost, ShuttingDown):
            if time.monotonic() > until:
                raise TimedOut("the daemon did not come back in time") from None
            if time.monotonic() > give_up:
                raise lost from None
            time.sleep(PAUSE)
