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


class Rule(enum.Enum):
    """How a call is kept. Names say what waits for what."""

    EFFECT = "made once all before it is on disk, and answered once it is itself"  # others see what it does
    TAKEN = "answered once it is on disk"  # what it does is in the journal, or costs something
    SHOWN = "made once all before it is on disk, and answered at once"  # lost with the daemon, it is shown twice
    VALUE = "answered at once"  # nobody else sees it: lost with the daemon, it is had anew, before any effect
    AGAIN = "made again at a replay"  # its effect lives in this life alone; only an error is kept


RULES: dict[type[Syscall], Rule] = {
    # Models: what they cost is not paid twice.
    Generate: Rule.EFFECT,
    ScoreText: Rule.TAKEN,
    EmbedTexts: Rule.TAKEN,
    # Outside the daemon.
    UseTool: Rule.EFFECT,
    Emit: Rule.SHOWN,
    # Messages. What goes to a durable mailbox, and what is taken from one, is in the transaction of the call.
    Send: Rule.EFFECT,
    Publish: Rule.EFFECT,
    Call: Rule.EFFECT,
    Reply: Rule.EFFECT,
    Receive: Rule.TAKEN,
    # In one transaction with what it changes of a name, a subscription or the private memory.
    Register: Rule.VALUE,
    Unregister: Rule.VALUE,
    Subscribe: Rule.VALUE,
    Unsubscribe: Rule.VALUE,
    MemoryGet: Rule.VALUE,
    MemorySet: Rule.VALUE,
    MemoryDelete: Rule.VALUE,
    MemoryKeys: Rule.VALUE,
    # Regions are everybody's.
    SharedGet: Rule.VALUE,
    SharedWatch: Rule.VALUE,
    SharedSet: Rule.EFFECT,
    SharedDelete: Rule.EFFECT,
    # Other processes. The end of a child is kept when it comes, before any wait for it.
    Spawn: Rule.EFFECT,
    Wait: Rule.VALUE,
    Kill: Rule.EFFECT,
    Suspend: Rule.EFFECT,
    Resume: Rule.EFFECT,
    Nice: Rule.EFFECT,
    Supervise: Rule.EFFECT,
    # Made anew at a replay where the other is there.
    Link: Rule.VALUE,
    Unlink: Rule.VALUE,
    Monitor: Rule.VALUE,
    Demonitor: Rule.AGAIN,
    # Time and chance. A sleep is kept when it begins, with its end.
    GetTime: Rule.VALUE,
    DrawRandom: Rule.VALUE,
    Sleep: Rule.VALUE,
    Checkpoint: Rule.TAKEN,
    # An event that was set was set; who set it may be gone.
    WaitForEvent: Rule.VALUE,
    # State of this life, which a replay builds up anew.
    SetEvent: Rule.AGAIN,
    ClearEvent: Rule.AGAIN,
    AcquireLock: Rule.AGAIN,
    ReleaseLock: Rule.AGAIN,
    AcquirePermit: Rule.AGAIN,
    ReleasePermit: Rule.AGAIN,
    WaitForNotice: Rule.AGAIN,
    Notify: Rule.AGAIN,
    WaitAtBarrier: Rule.AGAIN,
}

FIRST = frozenset({Rule.EFFECT, Rule.SHOWN})  # all before it has to be on disk
LAST = frozenset({Rule.EFFECT, Rule.TAKEN})  # it has to be on disk before it is answered
