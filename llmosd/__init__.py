"""llmosd: an operating system for LLM agents. The public names: decorators, context, clients, events and errors.

Programs and clients import from here. Importing this package never loads the kernel or torch; each name is imported at
its first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ipc.errors import (
        AgentFailed,
        BackupFailed,
        BadArguments,
        BadMessage,
        BurstExceeded,
        Busy,
        CheckpointRefused,
        ConfigError,
        ConnectionLost,
        ContextOverflow,
        DeadlineExceeded,
        DeadlockDetected,
        DriverFailed,
        FrameTooLarge,
        HistoryDamaged,
        InvalidCall,
        InvalidConstraint,
        InvalidPrompt,
        InvalidReply,
        JournalUnavailable,
        KeyReused,
        Killed,
        LimitExceeded,
        LlmosError,
        MailboxFull,
        MalformedFrame,
        MessageTooLarge,
        MissingExtra,
        ModelChanged,
        ModelLoadFailed,
        ModelNotFound,
        NameTaken,
        NoDaemon,
        NotACall,
        NotEncodable,
        NotFound,
        NotHeld,
        NotPermitted,
        NotStorable,
        OutcomeForgotten,
        OutOfTurn,
        ProtocolError,
        RegionDeleted,
        ReplayDiverged,
        ShuttingDown,
        SlowReader,
        SocketInUse,
        SocketPathInvalid,
        StateInUse,
        StateTooNew,
        SyncMismatch,
        TimedOut,
        ToolFailed,
        TooManyAttempts,
        TooManyRestarts,
        UndeclaredType,
        UnknownCall,
        UnknownModel,
        UnknownName,
        UnknownProcess,
        UnknownProgram,
        UnknownRegion,
        UnknownTask,
        UnknownThread,
        UnknownTool,
        VersionConflict,
        VersionMismatch,
    )
    from ipc.messages import Emitted, Failed, Log, Message, Missed, Restarted, Result, State, Token
    from ipc.syscalls import Child, Completion, Down, Limits, Score, TaskInfo
    from llmosd.client.asynchronous import AsyncClient, AsyncTask
    from llmosd.client.blocking import Client, Task
    from llmosd.context import ChatOptions, Context
    from llmosd.decorators import agent, tool

__version__ = "0.1.0"

_HOMES = {
    "ipc.errors": (
        "AgentFailed BackupFailed BadArguments BadMessage BurstExceeded Busy CheckpointRefused ConfigError "
        "ConnectionLost ContextOverflow DeadlineExceeded DeadlockDetected DriverFailed FrameTooLarge HistoryDamaged "
        "InvalidCall InvalidConstraint InvalidPrompt InvalidReply JournalUnavailable KeyReused Killed LimitExceeded "
        "LlmosError MailboxFull MalformedFrame MessageTooLarge MissingExtra ModelChanged ModelLoadFailed ModelNotFound "
        "NameTaken NoDaemon NotACall NotEncodable NotFound NotHeld NotPermitted NotStorable OutOfTurn OutcomeForgotten "
        "ProtocolError RegionDeleted ReplayDiverged ShuttingDown SlowReader SocketInUse SocketPathInvalid StateInUse "
        "StateTooNew SyncMismatch TimedOut TooManyAttempts TooManyRestarts ToolFailed UndeclaredType UnknownCall "
        "UnknownModel UnknownName UnknownProcess UnknownProgram UnknownRegion UnknownTask UnknownThread UnknownTool "
        "VersionConflict VersionMismatch"
    ),
    "ipc.syscalls": "Child Completion Down Limits Score TaskInfo",
    "ipc.messages": "Emitted Failed Log Message Missed Restarted Result State Token",
    "llmosd.decorators": "agent tool",
    "llmosd.client.asynchronous": "AsyncClient AsyncTask",
    "llmosd.client.blocking": "Client Task",
    "llmosd.context": "ChatOptions Context",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = [  # noqa: RUF022 - by theme
    "agent",
    "tool",
    "Context",
    "ChatOptions",
    "Client",
    "AsyncClient",
    "Task",
    "AsyncTask",
    "Message",
    "Missed",
    "Token",
    "Log",
    "State",
    "Emitted",
    "Restarted",
    "Result",
    "Failed",
    "Child",
    "Completion",
    "Down",
    "Limits",
    "Score",
    "TaskInfo",
    "LlmosError",
    "AgentFailed",
    "BackupFailed",
    "BadArguments",
    "BadMessage",
    "BurstExceeded",
    "Busy",
    "CheckpointRefused",
    "ConfigError",
    "ConnectionLost",
    "ContextOverflow",
    "DeadlineExceeded",
    "DeadlockDetected",
    "DriverFailed",
    "FrameTooLarge",
    "HistoryDamaged",
    "InvalidCall",
    "InvalidConstraint",
    "InvalidPrompt",
    "InvalidReply",
    "JournalUnavailable",
    "KeyReused",
    "Killed",
    "LimitExceeded",
    "MailboxFull",
    "MalformedFrame",
    "MessageTooLarge",
    "MissingExtra",
    "ModelChanged",
    "ModelLoadFailed",
    "ModelNotFound",
    "NameTaken",
    "NoDaemon",
    "NotACall",
    "NotEncodable",
    "NotFound",
    "NotHeld",
    "NotPermitted",
    "NotStorable",
    "OutOfTurn",
    "OutcomeForgotten",
    "ProtocolError",
    "RegionDeleted",
    "ReplayDiverged",
    "ShuttingDown",
    "SlowReader",
    "SocketInUse",
    "SocketPathInvalid",
    "StateInUse",
    "StateTooNew",
    "SyncMismatch",
    "TimedOut",
    "TooManyAttempts",
    "TooManyRestarts",
    "ToolFailed",
    "UndeclaredType",
    "UnknownCall",
    "UnknownModel",
    "UnknownName",
    "UnknownProcess",
    "UnknownProgram",
    "UnknownRegion",
    "UnknownTask",
    "UnknownThread",
    "UnknownTool",
    "VersionConflict",
    "VersionMismatch",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'llmosd' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(home), name)
    return value
