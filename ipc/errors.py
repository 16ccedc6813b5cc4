"""The error tree: every failure that llmosd names, and its form on the wire.

Raised by the kernel, the drivers and the clients alike. An error keeps its type across a socket: `to_wire` and
`from_wire` carry the class name, the message and a small mapping of facts. Nothing here logs or prints.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec


class ErrorInfo(msgspec.Struct, frozen=True, array_like=True):
    """An error as it travels: the name of its class, a sentence, and facts a program can use."""

    code: str
    message: str
    data: dict[str, Any] = {}


class LlmosError(Exception):
    """Root of all errors of llmosd. `data` holds plain facts (numbers, names), encodable as msgpack."""

    registry: ClassVar[dict[str, type[LlmosError]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        LlmosError.registry[cls.__name__] = cls

    def __init__(self, message: str = "", /, **data: Any) -> None:
        super().__init__(message)
        self.data = data

    @property
    def message(self) -> str:
        """The text for people, without the name of the error."""
        return str(self.args[0]) if self.args else ""


class ProtocolError(LlmosError):
    """The peer broke the wire protocol."""


class FrameTooLarge(ProtocolError):
    """A frame longer than the receiver accepts."""


class MalformedFrame(ProtocolError):
    """A frame that is not the msgpack of any message known at this place."""


class UnknownCall(ProtocolError):
    """A request whose system call this daemon does not have."""


class OutOfTurn(ProtocolError):
    """A frame that is valid but not at this moment, such as a request before the hello."""


class VersionMismatch(ProtocolError):
    """Client and daemon speak different versions of the protocol."""


class NoDaemon(LlmosError):
    """Nobody answers at the socket."""


class ConnectionLost(LlmosError):
    """The other side went away before it answered."""


class SlowReader(ProtocolError):
    """The peer does not read what it asked for, and was cut off."""


class SocketInUse(LlmosError):
    """A live daemon already serves this socket. `data["pid"]` says which."""


class StateInUse(LlmosError):
    """A live daemon keeps its state in that folder. `data["pid"]` says which."""


class StateTooNew(LlmosError):
    """The state folder was written by a later llmosd. `data`: `found` and `known` versions."""


class JournalUnavailable(LlmosError):
    """The journal cannot be written or read, so that no task is accepted. `data["retry_after"]` is in seconds.

    If `data["certain"]` is there and false, the disk said that it failed and may have the task all the same: should the
    daemon die before the disk is well, the task is begun then. With its key it can be submitted again in any case.
    """


class SocketPathInvalid(LlmosError):
    """The socket path is too long for the operating system, or its folder cannot be used."""


class ConfigError(LlmosError):
    """A setting that does not exist or has a value that is not allowed."""


class InvalidPolicy(LlmosError):
    """A scheduling policy that there is none of, or one with a quantum or a weight that it cannot have."""


class NotFound(LlmosError):
    """What was asked for does not exist."""


class UnknownProgram(NotFound):
    """No program of that name is known."""


class UnknownProcess(NotFound):
    """No process has that pid, or it has been forgotten."""


class UnknownTask(NotFound):
    """The journal has no task of that id, or has forgotten it."""


class UnknownThread(NotFound):
    """The process has no living thread of this path. The message names those it has."""


class UnknownName(NotFound):
    """No process is registered under that name."""


class UnknownModel(NotFound):
    """No model of that name is configured, and it is no path either."""


class UnknownRegion(NotFound):
    """No shared region has that name."""


class RegionDeleted(UnknownRegion):
    """The shared region that was watched has been deleted."""


class UnknownTool(NotFound):
    """No tool of that name is known."""


class ModelNotFound(NotFound):
    """The model is configured, but its files are not there."""


class MissingExtra(LlmosError):
    """A feature needs an optional part of the installation. `data["extra"]` names it."""


class InvalidCall(LlmosError):
    """A system call with an argument that is not allowed."""


class BadArguments(InvalidCall):
    """The arguments do not fit the signature of the program."""


class BackupFailed(LlmosError):
    """The journal could not be copied. The message says why."""


class KeyReused(InvalidCall):
    """The idempotency key belongs to a task with another program or other arguments."""


class NotEncodable(InvalidCall):
    """A value that msgpack cannot carry."""


class InvalidPrompt(InvalidCall):
    """A prompt the model cannot take: empty, or of a form that its chat template refuses."""


class InvalidConstraint(InvalidCall):
    """A schema, regular expression, grammar or list of choices that no reply can be held to, or that contradicts."""


class ContextOverflow(InvalidCall):
    """Prompt and reply together exceed the model's context. `data`: `prompt_tokens`, `max_tokens`, `context`."""


class InvalidWorkload(InvalidCall):
    """A trace, a recording or a workload that cannot be simulated. The message says where and why."""


class InvalidDevice(InvalidCall):
    """A device file that cannot be read, or whose figures make no device."""


class CalibrationFailed(LlmosError):
    """What was measured of a running daemon does not give a device model."""


class NotPermitted(LlmosError):
    """The caller may not do this."""


class MailboxFull(LlmosError):
    """The recipient's mailbox is full and the sender asked not to wait."""


class NameTaken(InvalidCall):
    """Another living process holds that name. `data["pid"]` says which."""


class UndeclaredType(InvalidCall):
    """The recipient declares what it accepts, and a message of this type is not among it. `data`: `type`, `accepts`."""


class BadMessage(InvalidCall):
    """The body does not fit the Struct that the recipient declares for its type."""


class MessageTooLarge(InvalidCall):
    """The body is larger than a message may be. `data`: `size` and `limit` in bytes."""


class VersionConflict(LlmosError):
    """A shared region has changed since it was read. `data`: `expected` and `found` versions."""


class NotACall(InvalidCall):
    """A reply to a message that expects none, or that was answered already."""


class NotHeld(InvalidCall):
    """A lock or permit that the calling thread does not hold."""


class SyncMismatch(InvalidCall):
    """The name is in use by another kind of primitive, or with other permits or parties."""


class DeadlockDetected(LlmosError):
    """The wait would never end: all who could end it wait, too. `data`: `knot`, a row for each of them, and `size`."""


class Busy(LlmosError):
    """A bound of the daemon is reached. `data["retry_after"]` is a hint in seconds."""


class ShuttingDown(Busy):
    """The daemon drains and takes no new work."""


class TooManyRestarts(LlmosError):
    """A supervisor gave up: a child ended once more than it may be restarted. `data` has `program` and `error`."""


class TooManyAttempts(LlmosError):
    """The daemon died over the task as often as a task is begun anew. `data["attempts"]` is that bound."""


class ReplayDiverged(LlmosError):
    """A durable agent made another call than before the daemon ended. `data`: `then` and `now`, `thread`, `number`."""


class HistoryDamaged(LlmosError):
    """What the journal has of a durable task cannot be read."""


class CheckpointRefused(InvalidCall):
    """A checkpoint of a process with more than one thread, or with children that still run."""


class TimedOut(LlmosError):
    """The caller's own patience ran out; what it waited for goes on."""


class DeadlineUnreachable(LlmosError):
    """A model call could not have been finished before the deadline of its task, and was ended while it waited."""


class DeadlineExceeded(LlmosError):
    """The task did not end by its deadline, and was ended."""


class LimitExceeded(LlmosError):
    """A limit of the process is reached. `data` names it."""


class BurstExceeded(LlmosError):
    """Agent code held the daemon's loop for longer than it may, without awaiting. `data["limit"]` is in seconds."""


class Killed(LlmosError):
    """The process was killed. The message says by whom or why."""


class AgentFailed(LlmosError):
    """The agent's own code raised. `data["traceback"]` is the text of the traceback."""


class ToolFailed(LlmosError):
    """A tool raised, or cannot be loaded. `data["traceback"]` is the text of the traceback."""


class InvalidReply(LlmosError):
    """A reply that is not what the call constrained it to be, such as one cut at `max_tokens`. `data["text"]` is it."""


class ModelLoadFailed(LlmosError):
    """The model could not be loaded."""


class DriverFailed(LlmosError):
    """The driver process died or misbehaved more often than it is restarted."""


def to_wire(error: BaseException) -> ErrorInfo:
    """The wire form of `error`. An error from outside the tree becomes `LlmosError`, with its type in the message.

    It can always be encoded: of a text that cannot, such as one with half a surrogate, a replacement stands for what is
    wrong, and other facts are left out.
    """
    if isinstance(error, LlmosError):
        info = ErrorInfo(type(error).__name__, error.message, error.data)
    else:
        info = ErrorInfo("LlmosError", f"{type(error).__name__}: {error}")
    try:
        msgspec.msgpack.encode(info)
    except (TypeError, ValueError, OverflowError, RecursionError):
        facts = {name: _readable(fact) for name, fact in info.data.items() if isinstance(fact, str)}
        info = ErrorInfo(info.code, _readable(info.message), facts)
    return info


def _readable(text: str) -> str:
    return text.encode(errors="replace").decode()


def from_wire(info: ErrorInfo) -> LlmosError:
    """The exception that `info` describes. A code this side does not know becomes a plain `LlmosError`."""
    kind = LlmosError.registry.get(info.code)
    if kind is None:
        message = info.message if info.code == "LlmosError" else f"{info.code}: {info.message}"
        return LlmosError(message, **info.data)
    return kind(info.message, **info.data)
