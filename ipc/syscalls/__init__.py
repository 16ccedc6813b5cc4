"""The manual of system calls: each a Struct, all of them in one tagged union, with the type of its answer.

Made by agents (in the loop, never encoded) and by clients (over a socket). The kernel handles each in one subsystem.
The answer's type is the class attribute `returns`; errors that a call can raise are named in its docstring, besides
those of the gate: `ShuttingDown`, `NotPermitted`, `Killed`. One file a subject.
"""

from __future__ import annotations

from ipc.syscalls.base import Body, Count, Priority, Seconds, Syscall
from ipc.syscalls.daemon import DaemonCalls, GetStats, Ping, Pong, Shutdown, Stats
from ipc.syscalls.limits import Limits
from ipc.syscalls.memory import (
    MemoryCalls,
    MemoryDelete,
    MemoryGet,
    MemoryKeys,
    MemorySet,
    RegionInfo,
    Regions,
    SharedDelete,
    SharedGet,
    SharedSet,
    SharedWatch,
    Versioned,
)
from ipc.syscalls.messages import (
    ANY_MESSAGE,
    Call,
    DeadLetter,
    DeadLetters,
    Heading,
    MessageCalls,
    NameInfo,
    Names,
    PeekMailbox,
    Publish,
    Receive,
    Register,
    Reply,
    Send,
    Subscribe,
    Unregister,
    Unsubscribe,
)
from ipc.syscalls.models import (
    ChatMessage,
    Constraint,
    Generate,
    ModelCalls,
    ModelInfo,
    Models,
    Sampling,
    SequenceInfo,
    SlotInfo,
    Slots,
)
from ipc.syscalls.output import Emit, OutputCalls, WriteLog
from ipc.syscalls.processes import (
    ExitStatus,
    Kill,
    Logs,
    ProcessCalls,
    ProcessInfo,
    ProgramInfo,
    Programs,
    Ps,
    Sleep,
    Spawn,
    Usage,
    Wait,
)
from ipc.syscalls.supervision import (
    DOWN,
    Child,
    Crashes,
    CrashReport,
    Demonitor,
    Down,
    Link,
    Monitor,
    Received,
    Supervise,
    SupervisionCalls,
    Unlink,
)
from ipc.syscalls.sync import (
    AcquireLock,
    AcquirePermit,
    ClearEvent,
    LockInfo,
    Locks,
    Notify,
    ReleaseLock,
    ReleasePermit,
    SetEvent,
    SyncCalls,
    WaitAtBarrier,
    WaitForEvent,
    WaitForNotice,
)
from ipc.syscalls.threads import Nice, Resume, StartThread, Suspend, ThreadCalls, ThreadInfo, Threads
from ipc.syscalls.tools import Reference, ToolCalls, ToolInfo, Tools, UseTool

SystemCall = (
    ProcessCalls
    | ThreadCalls
    | MessageCalls
    | SupervisionCalls
    | SyncCalls
    | MemoryCalls
    | ToolCalls
    | ModelCalls
    | OutputCalls
    | DaemonCalls
)

__all__ = [
    "ANY_MESSAGE",
    "DOWN",
    "AcquireLock",
    "AcquirePermit",
    "Body",
    "Call",
    "ChatMessage",
    "Child",
    "ClearEvent",
    "Constraint",
    "Count",
    "CrashReport",
    "Crashes",
    "DeadLetter",
    "DeadLetters",
    "Demonitor",
    "Down",
    "Emit",
    "ExitStatus",
    "Generate",
    "GetStats",
    "Heading",
    "Kill",
    "Limits",
    "Link",
    "LockInfo",
    "Locks",
    "Logs",
    "MemoryDelete",
    "MemoryGet",
    "MemoryKeys",
    "MemorySet",
    "ModelInfo",
    "Models",
    "Monitor",
    "NameInfo",
    "Names",
    "Nice",
    "Notify",
    "PeekMailbox",
    "Ping",
    "Pong",
    "Priority",
    "ProcessInfo",
    "ProgramInfo",
    "Programs",
    "Ps",
    "Publish",
    "Receive",
    "Received",
    "Reference",
    "RegionInfo",
    "Regions",
    "Register",
    "ReleaseLock",
    "ReleasePermit",
    "Reply",
    "Resume",
    "Sampling",
    "Seconds",
    "Send",
    "SequenceInfo",
    "SetEvent",
    "SharedDelete",
    "SharedGet",
    "SharedSet",
    "SharedWatch",
    "Shutdown",
    "Sleep",
    "SlotInfo",
    "Slots",
    "Spawn",
    "StartThread",
    "Stats",
    "Subscribe",
    "Supervise",
    "Suspend",
    "Syscall",
    "SystemCall",
    "ThreadInfo",
    "Threads",
    "ToolInfo",
    "Tools",
    "Unlink",
    "Unregister",
    "Unsubscribe",
    "Usage",
    "UseTool",
    "Versioned",
    "Wait",
    "WaitAtBarrier",
    "WaitForEvent",
    "WaitForNotice",
    "WriteLog",
]
