"""The table of recorded system calls: when each waits for the disk, and which of them a replay executes again.

Read by the replay. A call that is not in the table is never recorded and is executed again: it only reads (`Ps`), or
creates something that exists in memory only (`StartThread`). `WriteLog` is not in the table either; the replay drops
the lines that a thread logs while it replays, because they were logged the first time.
"""

from __future__ import annotations

import enum

from ipc.syscalls import (
    AcquireLock,
    AcquirePermit,
    Call,
    Checkpoint,
    ClearEvent,
    Demonitor,
    DrawRandom,
    EmbedTexts,
    Emit,
    Generate,
    GetTime,
    Kill,
    Link,
    MemoryDelete,
    MemoryGet,
    MemoryKeys,
    MemorySet,
    Monitor,
    Nice,
    Notify,
    Publish,
    Receive,
    Register,
    ReleaseLock,
    ReleasePermit,
    Reply,
    Resume,
    ScoreText,
    Send,
    SetEvent,
    SharedDelete,
    SharedGet,
    SharedSet,
    SharedWatch,
    Sleep,
    Spawn,
    Subscribe,
    Supervise,
    Suspend,
    Syscall,
    Unlink,
    Unregister,
    Unsubscribe,
    UseTool,
    Wait,
    WaitAtBarrier,
    WaitForEvent,
    WaitForNotice,
)


class RecordingRule(enum.Enum):
    """How a call is recorded, and whether it waits for the disk before it executes and after."""

    # "All before": the changes that the process made before, and the records of its earlier calls.

    # Others see the effect of the call.
    SYNC_BEFORE_AND_AFTER = "executes when all before is on disk, returns when its record is on disk"
    # The effect of the call is in the journal, too (mailbox, checkpoint), or the call is expensive to repeat.
    SYNC_AFTER = "returns when its record is on disk"
    # Others see the effect of the call, but may see it twice: the call executes again if its record is lost.
    SYNC_BEFORE = "executes when all before is on disk, returns immediately"
    # A call that others can see waits for this record. So if the record is lost, no such call has followed.
    ASYNC = "returns immediately"
    REEXECUTE = "a replay executes it again"  # its effect is in memory only; errors and cancellations are recorded


RULES: dict[type[Syscall], RecordingRule] = {
    # Models: a record saves the cost of a second execution.
    Generate: RecordingRule.SYNC_BEFORE_AND_AFTER,
    ScoreText: RecordingRule.SYNC_AFTER,
    EmbedTexts: RecordingRule.SYNC_AFTER,
    # Outside the daemon.
    UseTool: RecordingRule.SYNC_BEFORE_AND_AFTER,
    Emit: RecordingRule.SYNC_BEFORE,
    # Messages. The transaction of the call also adds the message to a durable mailbox, or deletes it from one.
    Send: RecordingRule.SYNC_BEFORE_AND_AFTER,
    Publish: RecordingRule.SYNC_BEFORE_AND_AFTER,
    Call: RecordingRule.SYNC_BEFORE_AND_AFTER,
    Reply: RecordingRule.SYNC_BEFORE_AND_AFTER,
    Receive: RecordingRule.SYNC_AFTER,
    # The transaction of the call also changes the name, subscription or private memory.
    Register: RecordingRule.ASYNC,
    Unregister: RecordingRule.ASYNC,
    Subscribe: RecordingRule.ASYNC,
    Unsubscribe: RecordingRule.ASYNC,
    MemoryGet: RecordingRule.ASYNC,
    MemorySet: RecordingRule.ASYNC,
    MemoryDelete: RecordingRule.ASYNC,
    MemoryKeys: RecordingRule.ASYNC,
    # All processes see the regions.
    SharedGet: RecordingRule.ASYNC,
    SharedWatch: RecordingRule.ASYNC,
    SharedSet: RecordingRule.SYNC_BEFORE_AND_AFTER,
    SharedDelete: RecordingRule.SYNC_BEFORE_AND_AFTER,
    # Other processes. The end of a child is persisted when it happens, even if no call waits for it.
    Spawn: RecordingRule.SYNC_BEFORE_AND_AFTER,
    Wait: RecordingRule.ASYNC,
    Kill: RecordingRule.SYNC_BEFORE_AND_AFTER,
    Suspend: RecordingRule.SYNC_BEFORE_AND_AFTER,
    Resume: RecordingRule.SYNC_BEFORE_AND_AFTER,
    Nice: RecordingRule.SYNC_BEFORE_AND_AFTER,
    Supervise: RecordingRule.SYNC_BEFORE_AND_AFTER,
    # A replay makes links and monitors again if the other process exists.
    Link: RecordingRule.ASYNC,
    Unlink: RecordingRule.ASYNC,
    Monitor: RecordingRule.ASYNC,
    Demonitor: RecordingRule.REEXECUTE,
    # Time and random numbers. A sleep is recorded when it begins, with the time at which it ends.
    GetTime: RecordingRule.ASYNC,
    DrawRandom: RecordingRule.ASYNC,
    Sleep: RecordingRule.ASYNC,
    Checkpoint: RecordingRule.SYNC_AFTER,
    # A replay does not wait again for an event: the process that set it may be gone.
    WaitForEvent: RecordingRule.ASYNC,
    # State that exists in memory only, which a replay builds up again.
    SetEvent: RecordingRule.REEXECUTE,
    ClearEvent: RecordingRule.REEXECUTE,
    AcquireLock: RecordingRule.REEXECUTE,
    ReleaseLock: RecordingRule.REEXECUTE,
    AcquirePermit: RecordingRule.REEXECUTE,
    ReleasePermit: RecordingRule.REEXECUTE,
    WaitForNotice: RecordingRule.REEXECUTE,
    Notify: RecordingRule.REEXECUTE,
    WaitAtBarrier: RecordingRule.REEXECUTE,
}

# The rules of calls that wait for the disk before they execute, and of those that wait for their own record after.
WAITS_BEFORE = frozenset({RecordingRule.SYNC_BEFORE_AND_AFTER, RecordingRule.SYNC_BEFORE})
WAITS_AFTER = frozenset({RecordingRule.SYNC_BEFORE_AND_AFTER, RecordingRule.SYNC_AFTER})
