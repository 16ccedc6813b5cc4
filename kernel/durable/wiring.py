"""Builds and connects the parts of the durable subsystem, and gives them the contents of the journal at a start.

Made by the kernel if the daemon has a journal. The task subsystem starts durable processes through `processes`. The
wiring never handles a call itself.
"""

from __future__ import annotations

from functools import partial

from ipc.errors import LlmosError
from ipc.syscalls import Call, Generate, Link, Monitor, Publish, Receive, Reply, Send, Spawn, Unlink, Wait
from kernel.durable.child_programs import ChildPrograms
from kernel.durable.commits import Commits
from kernel.durable.generations import CheckpointedModels, DurableGenerations, restore_count
from kernel.durable.links import DurableLinks
from kernel.durable.messages import DurableMessages
from kernel.durable.pending_restarts import PendingRestarts
from kernel.durable.processes import DurableProcesses
from kernel.durable.regions import DurableRegions
from kernel.durable.replay import Replay
from kernel.durable.state import DurableState
from kernel.gate import Gate
from kernel.journal.changes import DaemonStable, HighestIds, LastPid
from kernel.journal.histories import RecoveredState
from kernel.journal.journal import Journal
from kernel.memory.shared import SharedMemory
from kernel.messages.messaging import Messaging
from kernel.messages.publish import Publisher
from kernel.processes.lifecycle import Lifecycle
from kernel.programs.watch import ProgramWatch
from kernel.supervision.links import Links

STABLE_AFTER = 600.0  # seconds of a run after which the crash counts of durable tasks are set to 0


class Durability:
    """`processes` starts durable processes, and `commits` persists their changes."""

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
        pending_restarts: PendingRestarts,
        watch: ProgramWatch,
    ) -> None:
        self._journal = journal
        self._pids = lifecycle.table.pids
        self._loop = lifecycle.dispatcher.loop
        self._messaging = messaging
        self._pending_restarts = pending_restarts
        self.commits = commits = Commits(journal)
        self.regions = DurableRegions(shared, commits)
        messages = DurableMessages(messaging, publication, commits, lifecycle.table.alive, pending_restarts)
        durable_links = DurableLinks(links, commits, pending_restarts)
        state = DurableState(gate, commits)
        replay = Replay(gate, commits, lifecycle.process_exit, shared, state)
        context = partial(lifecycle.make_context, replay)
        self.processes = processes = DurableProcesses(
            gate, commits, pending_restarts, messages, lifecycle, context, ChildPrograms(lifecycle, watch)
        )
        self.generations = generations = DurableGenerations(models, commits, processes)
        replay.handlers.update({Send: messages.send, Call: messages.call, Reply: messages.reply})
        replay.handlers.update({Publish: messages.publish, Spawn: processes.spawn, Wait: processes.wait})
        replay.handlers.update(dict.fromkeys(state.changes, state.make))
        replay.handlers.update(
            {Monitor: durable_links.monitor, Link: durable_links.link, Generate: generations.generate}
        )
        replay.restorers.update(
            {
                Monitor: durable_links.restore_monitor,
                Link: durable_links.restore_link,
                Unlink: durable_links.restore_unlink,
                Generate: restore_count,
            }
        )
        replay.restorers.update(
            {Receive: messages.restore_receive, Reply: messages.restore_reply, Spawn: processes.restore_spawn}
        )

    def opened(self, opening: RecoveredState) -> None:
        """Restore ids, regions and pending restarts, and delete unused files, before the kernel answers any call."""
        self._pids.start_after(opening.pid, opening.reserved)
        self._messaging.start_ids_after(opening.message)
        self.regions.restore(opening)
        self.generations.opened(opening)
        self._pending_restarts.expect(opening.expected, opening.names)
        if opening.expected:
            self._loop.call_later(STABLE_AFTER, self.commits.persist, DaemonStable())

    def reserve_pids(self, pid: int) -> None:
        """Request that all pids up to `pid` are reserved on disk."""
        self._journal.persist((HighestIds(pid=pid),), partial(self._reserved, pid))

    def _reserved(self, pid: int, error: LlmosError | None) -> None:
        self._pids.confirm(pid, refused=error is not None)

    def close(self) -> None:
        """Give out no more pids, and persist the last one, so that the next run continues with the next one."""
        self._journal.persist((LastPid(self._pids.close()),), lambda error: None)
