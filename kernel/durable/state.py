"""What a durable process keeps besides its calls: private memory, names and subscriptions; and its checkpoints.

The handlers of a durable process are called by the replay: each makes the call as for any process, and has the change
written in the transaction that keeps the call.
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
from kernel.durable.history import CallHistory, Key
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
    """Writes down what changes."""

    def __init__(self, gate: Gate, commits: Commits) -> None:
        self._gate = gate
        self._commits = commits
        self.kept: dict[type[Syscall], Callable[[Process, Any], Change]] = {
            MemorySet: lambda process, call: PutMemory(process.pid, call.key, bytes(raw(call.value))),
            MemoryDelete: lambda process, call: DropMemory(process.pid, call.key),
            Register: lambda process, call: PutName(call.name, call.pid or process.pid),
            Unregister: lambda process, call: DropName(call.name),
            Subscribe: lambda process, call: PutSubscription(process.pid, call.pattern),
            Unsubscribe: lambda process, call: DropSubscription(process.pid, call.pattern),
        }

    async def change(self, process: Process, call: Syscall, key: Key) -> Any:
        """One of the calls in `kept`."""
        answer = await self._gate.answer(process, call)
        self._commits.keep(self.kept[type(call)](process, call))
        return answer

    async def checkpoint(self, process: Process, history: CallHistory, thread: Thread, call: Checkpoint) -> Any:
        """The first one of a life gives back what the last one of an earlier life kept.

        It is no call among others: it cuts them, and has no number.
        """
        if len(process.threads) > 1 or process.children:
            raise CheckpointRefused(
                f"process {process.pid} has {len(process.threads)} threads and {len(process.children)} children; a "
                "checkpoint is taken when the first thread alone is left: await the others before it",
                threads=len(process.threads),
                children=len(process.children),
            )
        row = history.row
        thread.offspring = 0
        if row is not None and row.epoch > history.epoch:
            history.cut(row.epoch)
            return decode(row.state or b"\xc0")
        state = raw(call.state)
        history.cut(history.epoch + 2)
        kept = Checkpointed(process.pid, history.epoch, bytes(state), encode(list(process.pending_calls or ())))
        history.last = self._commits.keep(kept, TaskProgressed(history.tree.id))
        await self._commits.hand_over(thread, history.last)
        return state
