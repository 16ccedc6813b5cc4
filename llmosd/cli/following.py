"""Follows the events of a task for `llmos attach`, also across restarts of the daemon.

It reconnects and continues after the last event that it has read. It never returns an event twice within one run of the
daemon. An event `Restarted` says that the task started again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from ipc.errors import ConnectionLost, NoDaemon, ShuttingDown
from ipc.messages import Event
from llmosd.client.blocking import Client, Task

PATIENCE = 10.0  # seconds for the daemon to restart
PAUSE = 0.1  # seconds between two attempts to connect


def events(client: Client, task: Task, note: Callable[[str], None]) -> Iterator[Event]:
    """All events of `task` from now on. `note` prints that the daemon is lost.

    Raises `ConnectionLost` if the daemon does not restart, and `TimedOut` when the time of the client expires, also
    between two runs of the daemon.
    """
    while True:
        try:
            yield from task.events()
            return
        except ConnectionLost as lost:
            note("lost the daemon; waiting until it restarts")
            task = _reattach(client, task, lost)


def _reattach(client: Client, task: Task, lost: ConnectionLost) -> Task:
    give_up = time.monotonic() + PATIENCE
    while True:
        client.close()
        try:
            client.connect()
            return client.attach(task.id, after=task.seen)
        except (NoDaemon, ConnectionLost, ShuttingDown):
            client.check_time()
            if time.monotonic() > give_up:
                raise lost from None
            time.sleep(PAUSE)
