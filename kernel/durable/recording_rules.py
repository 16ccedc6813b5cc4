"""The table of system calls: which a durable process records, which wait for the disk, which a replay executes again.

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

    # "All before" are the earlier changes of the process and records of its calls.
    SYNC_BEFORE_AND_AFTER = "executes when all before is on disk, returns when its record is"  # others see its effect
    SYNC_AFTER = "returns when its record is on disk"  # its effect is in the journal too, or has a cost
    SYNC_BEFORE = "executes when all before is on disk, and returns immediately"  # without a record it happens twice
    ASYNC = "returns immediately"  # nobody else sees it: if its record is lost, it executes again before any effect
    REEXECUTE = "a replay executes it again"  # its effect exists in memory only; errors are recorded


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
    # A replay makes them again if the other process exists.
    Link: RecordingRule.ASYNC,
    Unlink: RecordingRule.ASYNC,
    Monitor: RecordingRule.ASYNC,
    Demonitor: RecordingRule.REEXECUTE,
    # Time and random numbers. A sleep is recorded when it begins, with its end.
    GetTime: RecordingRule.ASYNC,
    DrawRandom: RecordingRule.ASYNC,
    Sleep: RecordingRule.ASYNC,
    Checkpoint: RecordingRule.SYNC_AFTER,
    # A replay does not wait again for an event: the process that set it may be gone.
    WaitForEvent: RecordingRule.ASYNC,
    # State in memory only, which a replay builds up again.
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

# Rules by which a call executes only when all before is on disk, and by which it returns only when its record is.
WAITS_BEFORE = frozenset({RecordingRule.SYNC_BEFORE_AND_AFTER, RecordingRule.SYNC_BEFORE})
WAITS_AFTER = frozenset({RecordingRule.SYNC_BEFORE_AND_AFTER, RecordingRule.SYNC_AFTER})
