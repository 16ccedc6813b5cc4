"""Follows the events of a task for `llmos attach` and `llmos run`.

`llmos run` follows a task that ends with the command. `llmos attach` follows a task also across restarts of the daemon:
it reconnects and continues after the last event that it has read. It never returns an event twice within one run of the
daemon. An event `Restarted` says that the task started again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

from ipc.errors import ConnectionLost, NoDaemon, ShuttingDown, TimedOut
from ipc.messages import Event
from llmosd.client.blocking import FOREVER, Client, Task

PATIENCE = 10.0  # seconds for the daemon to restart
PAUSE = 0.1  # seconds between two attempts to connect


def attached(task: Task, timeout: float | None) -> Iterator[Event]:
    """All events of a task that ends with its client. Raises `TimedOut`: the command exits, and so the task ends."""
    try:
        yield from task.events(timeout)
    except TimedOut:
        raise TimedOut(f"no result within {timeout} s, so the task ends; use --detach to leave it running") from None


def events(client: Client, task: Task, timeout: float | None) -> Iterator[Event]:
    """All events of `task` from now on. Raises `TimedOut`, and `ConnectionLost` if the daemon does not restart."""
    until = FOREVER if timeout is None else time.monotonic() + timeout
    while True:
        try:
            yield from task.events(None if timeout is None else max(until - time.monotonic(), 0.0))
            return
        except ConnectionLost as lost:
            print("llmos: lost the daemon; waiting until it restarts", file=sys.stderr)
            task = _reattach(client, task, lost, until)


def _reattach(client: Client, task: Task, lost: ConnectionLost, until: float) -> Task:
    give_up = time.monotonic() + PATIENCE
    while True:
        client.close()
        try:
            client.connect()
            return client.attach(task.id, after=task.seen)
        except (NoDaemon, ConnectionLost, ShuttingDown):
            if time.monotonic() > until:
                raise TimedOut("the daemon did not restart in time; use a longer --timeout") from None
            if time.monotonic() > give_up:
                raise lost from None
            time.sleep(PAUSE)
