"""Persists the private memory, names and subscriptions of a durable process, and its checkpoints.

Called by the replay. A handler makes the call as for any process, and persists the change in the transaction that
records the call. It never restores this state: `kernel.durable.processes` does, when a process restarts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ipc.codec import decode, encode
from ipc.errors import CheckpointRefused
from ipc.syscalls import (
    Checkpoint,
    MemoryDelete,
    MemorySet,
    Register,
    Subscribe,
    Syscall,
    Unregister,
    Unsubscribe,
)
from kernel.core.process import Process, Thread
from kernel.durable.commits import Commits
from kernel.durable.history import CallHistory, CallKey
from kernel.durable.recorded_call import raw
from kernel.gate import Gate
from kernel.journal.changes import (
    Change,
    Checkpointed,
    DropMemory,
    DropName,
    DropSubscription,
    PutMemory,
    PutName,
    PutSubscription,
    TaskProgressed,
)


class DurableState:
    """`changes` maps each kind of call to a function that returns the change to persist."""

    def __init__(self, gate: Gate, commits: Commits) -> None:
        self._gate = gate
        self._commits = commits
        self.changes: dict[type[Syscall], Callable[[Process, Any], Change]] = {
            MemorySet: lambda process, call: PutMemory(process.pid, call.key, bytes(raw(call.value))),
            MemoryDelete: lambda process, call: DropMemory(process.pid, call.key),
            Register: lambda process, call: PutName(call.name, call.pid or process.pid),
            Unregister: lambda process, call: DropName(call.name),
            Subscribe: lambda process, call: PutSubscription(process.pid, call.pattern),
            Unsubscribe: lambda process, call: DropSubscription(process.pid, call.pattern),
        }

    async def make(self, process: Process, call: Syscall, key: CallKey) -> Any:
        """Make a call of a kind in `changes`, and persist its change."""
        answer = await self._gate.answer(process, call)
        self._commits.persist(self.changes[type(call)](process, call))
        return answer

    async def checkpoint(self, process: Process, history: CallHistory, thread: Thread, call: Checkpoint) -> Any:
        """Persist the state, drop all records of the process, and return the state.

        If a previous run has made a checkpoint, the first call after a restart persists nothing, and returns the state
        of the last checkpoint. A checkpoint begins an epoch; it has no number in an epoch and no record itself.
        """
        if len(process.threads) > 1 or process.children:
            raise CheckpointRefused(
                f"process {process.pid} has {len(process.threads)} threads and {len(process.children)} children; a "
                "checkpoint needs a process with its first thread only and no child: wait for the others to end",
                threads=len(process.threads),
                children=len(process.children),
            )
        row = history.row
        thread.started_threads = 0
        if row is not None and row.epoch > history.epoch:
            history.start_epoch(row.epoch)
            return decode(row.state or b"\xc0")
        state = raw(call.state)
        history.start_epoch(history.epoch + 2)
        checkpoint = Checkpointed(process.pid, history.epoch, bytes(state), encode(list(process.pending_calls or ())))
        history.last_commit = self._commits.persist(checkpoint, TaskProgressed(history.task.id))
        await self._commits.wait_deferring_cancellation(thread, history.last_commit)
        return state
