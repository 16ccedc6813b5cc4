"""The subsystem of durable processes, put together: made by the kernel if it has a journal.

The task subsystem begins their tasks through it. It holds nothing but its parts.
"""

from __future__ import annotations

from functools import partial

from ipc.syscalls import Call, Generate, Link, Monitor, Publish, Receive, Reply, Send, Spawn, Unlink, Wait
from kernel.durable.commits import Commits
from kernel.durable.generations import CheckpointedModels, DurableGenerations, count
from kernel.durable.links import DurableLinks
from kernel.durable.messages import DurableMessages
from kernel.durable.pending_restarts import PendingRestarts
from kernel.durable.processes import DurableProcesses
from kernel.durable.regions import DurableRegions
from kernel.durable.replay import Replay
from kernel.durable.state import DurableState
from kernel.gate import Gate
from kernel.journal.changes import DaemonStable
from kernel.journal.histories import RecoveredState
from kernel.journal.journal import Journal
from kernel.memory.shared import SharedMemory
from kernel.messages.messaging import Messaging
from kernel.messages.publish import Publisher
from kernel.processes.lifecycle import Lifecycle
from kernel.supervision.links import Links

LASTED = 600.0  # seconds of a life after which no durable task is blamed for its end: who only waits keeps nothing


class Durability:
    """`processes` begins durable processes, `commits` writes what they change."""

    def __init__(
        self,
        journal: Journal,
        gate: Gate,
        lifecycle: Lifecycle,
        messaging: Messaging,
        publication: Publisher,
        links: Links,
        shared: SharedMemory,
        models: CheckpointedModels,
        arrivals: PendingRestarts,
    ) -> None:
        self._table = lifecycle.table
        self._loop = lifecycle.dispatcher.loop
        self._messaging = messaging
        self._arrivals = arrivals
        self.commits = commits = Commits(journal)
        self.regions = DurableRegions(shared, commits)
        messages = DurableMessages(messaging, publication, commits, lifecycle.table.alive, arrivals)
        kin = DurableLinks(links, commits, arrivals)
        state = DurableState(gate, commits)
        replay = Replay(gate, commits, lifecycle.process_exit, shared, state)
        context = partial(lifecycle.make_context, replay)
        self.processes = processes = DurableProcesses(gate, commits, arrivals, messages, lifecycle, context)
        self.generations = generations = DurableGenerations(models, commits, processes)
        replay.handlers.update({Send: messages.send, Call: messages.call, Reply: messages.reply})
        replay.handlers.update({Publish: messages.publish, Spawn: processes.spawn, Wait: processes.wait})
        replay.handlers.update(dict.fromkeys(state.kept, state.change))
        replay.handlers.update({Monitor: kin.monitor, Link: kin.link, Generate: generations.generate})
        replay.again.update({Monitor: kin.monitored, Link: kin.linked, Unlink: kin.unlinked, Generate: count})
        replay.again.update({Receive: messages.received, Reply: messages.replied, Spawn: processes.spawned})

    def opened(self, opening: RecoveredState) -> None:
        """The journal is open: take up what has to be known before anybody is answered."""
        self._table.last_pid = max(self._table.last_pid, opening.pid)
        self._messaging.begin_after(opening.message)
        self.regions.restore(opening)
        self.generations.opened(opening)
        self._arrivals.expect(opening.expected, opening.names)
        if opening.expected:
            self._loop.call_later(LASTED, self.commits.keep, DaemonStable())
