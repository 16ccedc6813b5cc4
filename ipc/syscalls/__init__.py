"""The manual of system calls: each a Struct, all of them in one tagged union, with the type of its answer.

Made by agents (in the loop, never encoded) and by clients (over a socket). The kernel handles each in one subsystem.
The answer's type is the class attribute `returns`; errors that a call can raise are named in its docstring, besides
those of the gate: `ShuttingDown`, `NotPermitted`, `Killed`. One file a subject.
"""

from __future__ import annotations

from ipc.syscalls.base import Body, Count, Priority, Seconds, Syscall
from ipc.syscalls.daemon import DaemonCalls, GetStats, Ping, Pong, Shutdown, Stats
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
    Nice,
    ProcessCalls,
    ProcessInfo,
    ProgramInfo,
    Programs,
    Ps,
    Resume,
    Sleep,
    Spawn,
    Suspend,
    Usage,
    Wait,
)
from ipc.syscalls.sync import LockInfo, Locks, SyncCalls

SystemCall = ProcessCalls | MessageCalls | SyncCalls | ModelCalls | OutputCalls | DaemonCalls

__all__ = [
    "ANY_MESSAGE",
    "Body",
    "Call",
    "ChatMessage",
    "Count",
    "DeadLetter",
    "DeadLetters",
    "Emit",
    "ExitStatus",
    "Generate",
    "GetStats",
    "Heading",
    "Kill",
    "LockInfo",
    "Locks",
    "Logs",
    "ModelInfo",
    "Models",
    "NameInfo",
    "Names",
    "Nice",
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
    "Register",
    "Reply",
    "Resume",
    "Sampling",
    "Seconds",
    "Send",
    "SequenceInfo",
    "Shutdown",
    "Sleep",
    "SlotInfo",
    "Slots",
    "Spawn",
    "Stats",
    "Subscribe",
    "Suspend",
    "Syscall",
    "SystemCall",
    "Unregister",
    "Unsubscribe",
    "Usage",
    "Wait",
    "WriteLog",
]
