"""Which system calls of a durable process are kept, which wait for the disk, and which are made again at a replay.

Read by the replay. A call that is not here leaves no trace and is made again: it only looks (`Ps`), or hands out what
lives in this life alone (`StartThread`). `WriteLog` is not kept either; while a thread replays its lines are dropped,
as they were written when it came there first.
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
    """How a call is kept. Names say what waits for what."""

    SYNC_BEFORE_AND_AFTER = (
        "made once all before it is on disk, and answered once it is itself"  # others see what it does
    )
    SYNC_AFTER = "answered once it is on disk"  # what it does is in the journal, or costs something
    SYNC_BEFORE = "made once all before it is on disk, and answered at once"  # lost with the daemon, it is shown twice
    ASYNC = "answered at once"  # nobody else sees it: lost with the daemon, it is had anew, before any effect
    REEXECUTE = "made again at a replay"  # its effect lives in this life alone; only an error is kept


RULES: dict[type[Syscall], RecordingRule] = {
    # Models: what they cost is not paid twice.
    Generate: RecordingRule.SYNC_BEFORE_AND_AFTER,
    ScoreText: RecordingRule.SYNC_AFTER,
    EmbedTexts: RecordingRule.SYNC_AFTER,
    # Outside the daemon.
    UseTool: RecordingRule.SYNC_BEFORE_AND_AFTER,
    Emit: RecordingRule.SYNC_BEFORE,
    # Messages. What goes to a durable mailbox, and what is taken from one, is in the transaction of the call.
    Send: RecordingRule.SYNC_BEFORE_AND_AFTER,
    Publish: RecordingRule.SYNC_BEFORE_AND_AFTER,
    Call: RecordingRule.SYNC_BEFORE_AND_AFTER,
    Reply: RecordingRule.SYNC_BEFORE_AND_AFTER,
    Receive: RecordingRule.SYNC_AFTER,
    # In one transaction with what it changes of a name, a subscription or the private memory.
    Register: RecordingRule.ASYNC,
    Unregister: RecordingRule.ASYNC,
    Subscribe: RecordingRule.ASYNC,
    Unsubscribe: RecordingRule.ASYNC,
    MemoryGet: RecordingRule.ASYNC,
    MemorySet: RecordingRule.ASYNC,
    MemoryDelete: RecordingRule.ASYNC,
    MemoryKeys: RecordingRule.ASYNC,
    # Regions are everybody's.
    SharedGet: RecordingRule.ASYNC,
    SharedWatch: RecordingRule.ASYNC,
    SharedSet: RecordingRule.SYNC_BEFORE_AND_AFTER,
    SharedDelete: RecordingRule.SYNC_BEFORE_AND_AFTER,
    # Other processes. The end of a child is kept when it comes, before any wait for it.
    Spawn: RecordingRule.SYNC_BEFORE_AND_AFTER,
    Wait: RecordingRule.ASYNC,
    Kill: RecordingRule.SYNC_BEFORE_AND_AFTER,
    Suspend: RecordingRule.SYNC_BEFORE_AND_AFTER,
    Resume: RecordingRule.SYNC_BEFORE_AND_AFTER,
    Nice: RecordingRule.SYNC_BEFORE_AND_AFTER,
    Supervise: RecordingRule.SYNC_BEFORE_AND_AFTER,
    # Made anew at a replay where the other is there.
    Link: RecordingRule.ASYNC,
    Unlink: RecordingRule.ASYNC,
    Monitor: RecordingRule.ASYNC,
    Demonitor: RecordingRule.REEXECUTE,
    # Time and chance. A sleep is kept when it begins, with its end.
    GetTime: RecordingRule.ASYNC,
    DrawRandom: RecordingRule.ASYNC,
    Sleep: RecordingRule.ASYNC,
    Checkpoint: RecordingRule.SYNC_AFTER,
    # An event that was set was set; who set it may be gone.
    WaitForEvent: RecordingRule.ASYNC,
    # State of this life, which a replay builds up anew.
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

FIRST = frozenset({RecordingRule.SYNC_BEFORE_AND_AFTER, RecordingRule.SYNC_BEFORE})  # all before it has to be on disk
LAST = frozenset(
    {RecordingRule.SYNC_BEFORE_AND_AFTER, RecordingRule.SYNC_AFTER}
)  # it has to be on disk before it is answered
