"""The subsystem of durable processes, put together: made by the kernel if it has a journal.

The task subsystem begins their tasks through it. It holds nothing but its parts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ipc.syscalls import Call, Generate, Link, Monitor, Publish, Receive, Reply, Send, Spawn, Unlink, Wait
from kernel.control import Control
from kernel.dispatcher import Dispatcher
from kernel.durable.arrivals import Arrivals
from kernel.durable.commits import Commits
from kernel.durable.generations import DurableGenerations, Models, count
from kernel.durable.links import DurableLinks
from kernel.durable.messages import DurableMessages
from kernel.durable.processes import DurableProcesses
from kernel.durable.regions import DurableRegions
from kernel.durable.replay import Replay
from kernel.durable.state import DurableState
from kernel.ending import Ending
from kernel.gate import Gate
from kernel.journal.changes import Lasted
from kernel.journal.histories import Opening
from kernel.journal.journal import Journal
from kernel.lifecycle import Lifecycle
from kernel.memory.shared import SharedMemory
from kernel.messaging import Messaging
from kernel.names import NameRegistry
from kernel.process import Process
from kernel.process_table import ProcessTable
from kernel.programs import Programs
from kernel.publication import Publication
from kernel.supervision.links import Links

LASTED = 600.0  # seconds of a life after which no durable task is blamed for its end: who only waits keeps nothing


class Durability:
    """`processes` begins durable processes, `commits` writes what they change."""

    def __init__(
        self,
        journal: Journal,
        gate: Gate,
        table: ProcessTable,
        lifecycle: Lifecycle,
        programs: Programs,
        dispatcher: Dispatcher,
        ending: Ending,
        messaging: Messaging,
        publication: Publication,
        names: NameRegistry,
        links: Links,
        shared: SharedMemory,
        control: Control,
        make_context: Callable[[Any, Process], Any],
    ) -> None:
        self._gate = gate
        self._table = table
        self._loop = dispatcher.loop
        self._messaging = messaging
        self.commits = Commits(journal)
        self._arrivals = Arrivals(self._all_came)
        names.reserved = self._arrivals.names
        links.expected = self._arrivals.pids
        messages = DurableMessages(messaging, publication, self.commits, table.alive, self._arrivals)
        kin = DurableLinks(links, self.commits, self._arrivals)
        state = DurableState(gate, self.commits)
        self._regions = DurableRegions(shared, self.commits)
        replay = Replay(gate, self.commits, ending, shared, state)
        context = partial(make_context, replay)
        self.processes = processes = DurableProcesses(
            gate, self.commits, self._arrivals, messages, lifecycle, ending, table, programs, dispatcher, context
        )
        replay.handlers.update({Send: messages.send, Call: messages.call, Reply: messages.reply})
        replay.handlers.update({Publish: messages.publish, Spawn: processes.spawn, Wait: processes.wait})
        replay.handlers.update(dict.fromkeys(state.kept, state.change))
        replay.handlers.update({Monitor: kin.monitor, Link: kin.link})
        replay.again.update({Monitor: kin.monitored, Link: kin.linked, Unlink: kin.unlinked})
        replay.again.update({Receive: messages.received, Reply: messages.replied, Spawn: processes.spawned})
        self._replay = replay
        control.on_suspend.append(processes.suspended)
        control.on_resume.append(partial(processes.suspended, suspended=False))
        control.on_nice.append(processes.ranked)
        ending.on_end.append(processes.process_ended)

    def serve(self, models: Models) -> DurableGenerations:
        """Model calls are made by `models`. Call once, before the loop goes on."""
        self.generations = made = DurableGenerations(models, self.commits, self.processes)
        self._replay.handlers[Generate] = made.generate
        self._replay.again[Generate] = count
        return made

    def opened(self, opening: Opening) -> None:
        """The journal is open: take up what has to be known before anybody is answered."""
        self._table.last_pid = max(self._table.last_pid, opening.pid)
        self._messaging.begin_after(opening.message)
        self._regions.restore(opening)
        self.generations.opened(opening)
        self._arrivals.expect(opening.expected, opening.names)
        if opening.expected:
            self._gate.arrivals = self._arrivals
            self._loop.call_later(LASTED, self.commits.keep, Lasted())

    def _all_came(self) -> None:
        self._gate.arrivals = None
