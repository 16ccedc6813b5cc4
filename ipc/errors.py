"""The error tree: every failure that llmosd names, and its form on the wire.

The kernel, the drivers and the clients raise these errors. An error keeps its type across a socket: `to_wire` and
`from_wire` carry the class name, the message and a small mapping of facts. This module never logs or prints.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from ipc.foreign import attributes_of, bounded, class_name, is_a, text_by

MAX_TEXT = 65_536  # characters of the text of an error on the wire
MAX_BRIEF = 500  # characters of the text of an error in another text


class ErrorInfo(msgspec.Struct, frozen=True, array_like=True):
    """An error on the wire: the name of its class (`code`), a sentence for people, and facts for programs.

    If the error left an agent or a tool, `data` also holds the text of its `traceback`, and its `place`, "FILE:LINE".
    If it ended a process, `crash` is the pid by which `llmos crashes` finds the report.
    """

    code: str
    message: str
    data: dict[str, Any] = {}


class LlmosError(Exception):
    """The root of all errors of llmosd. `data` holds plain facts, such as numbers and names, for programs.

    In a client, `ended_process` says that the error ended the process that the client waited for. Otherwise it is the
    error of a call that the client made itself. The classes are the same.
    """

    ended_process = False
    registry: ClassVar[dict[str, type[LlmosError]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        known = LlmosError.registry.get(cls.__name__)
        if known is None or known.__module__ != __name__:  # an agent's class must not take the name of one of ours
            LlmosError.registry[cls.__name__] = cls

    def __init__(self, message: str = "", /, **data: Any) -> None:
        super().__init__(message)
        self.data = data

    @property
    def message(self) -> str:
        """The sentence for people, without the name of the error."""
        return str(self.args[0]) if self.args else ""


class ProtocolError(LlmosError):
    """The peer broke the wire protocol."""


class FrameTooLarge(ProtocolError):
    """A frame is longer than its receiver accepts. `data`: `length` and `limit` in bytes."""


class MalformedFrame(ProtocolError):
    """The bytes are not msgpack, or not a message that the receiver expects."""


class UnknownCall(ProtocolError):
    """The daemon has no system call of this name."""


class OutOfTurn(ProtocolError):
    """A valid frame arrived at the wrong moment, such as a request before `Hello`."""


class VersionMismatch(ProtocolError):
    """Client and daemon speak different versions of the protocol. `data`: the `client` and `daemon` versions."""


class NoDaemon(LlmosError):
    """No daemon answers at the socket. `data["socket"]` is its path."""


class ConnectionLost(LlmosError):
    """The connection ended before the answer arrived. A detached task goes on; attach to it by its id."""


class SlowReader(ProtocolError):
    """The peer left too many bytes unread, so its connection was cut. `data["unread"]` is in bytes."""


class SlowWriter(ProtocolError):
    """The peer began a frame and did not complete it in time, so its connection was closed. `data["size"]`: its bytes.

    `data["seconds"]` is the time that it had.
    """


class SocketInUse(LlmosError):
    """Another daemon already serves this socket. `data["pid"]` is its process."""


class StateInUse(LlmosError):
    """Another daemon already uses this state folder. `data["pid"]` is its process."""


class StateTooNew(LlmosError):
    """A newer llmosd wrote the state folder. `data`: the versions `found` and `known`."""


class JournalUnavailable(LlmosError):
    """The journal cannot be written or read, so the daemon accepts no task. `data["retry_after"]` is in seconds.

    If `data["certain"]` is false, the task may be on disk although the disk reported a failure. If the daemon then dies
    before the disk recovers, its next run starts the task. A submission with a key can be repeated safely.
    """


class SocketPathInvalid(LlmosError):
    """The socket path is too long for the operating system, or the daemon cannot use its folder."""


class ConfigError(LlmosError):
    """A setting does not exist, or its value is not allowed."""


class InvalidPolicy(LlmosError):
    """No scheduling policy has this name, or its quantum, weight or other number is out of range."""


class NotFound(LlmosError):
    """The requested object does not exist. Most cases have a class of their own below this one."""


class UnknownProgram(NotFound):
    """No program has this name, and no file has this path."""


class UnknownProcess(NotFound):
    """No living process has this pid. For `wait`: no ended process that the daemon still remembers has it either."""


class OutcomeForgotten(UnknownProcess):
    """`wait` was too late: the process has ended, and the daemon no longer knows how. `data["pid"]` is its pid."""


class UnknownTask(NotFound):
    """The journal has no task with this id. It deletes ended tasks after a while (setting `journal.keep`)."""


class UnknownThread(NotFound):
    """The process has no living thread with this path. The message lists its threads."""


class UnknownName(NotFound):
    """No process is registered under this name."""


class UnknownModel(NotFound):
    """No model of this name is configured, and the name is not a path."""


class UnknownRegion(NotFound):
    """No shared region has this name."""


class RegionDeleted(UnknownRegion):
    """The shared region was deleted while the caller watched it."""


class UnknownTool(NotFound):
    """No tool has this name. The message suggests a similar one."""


class ModelNotFound(NotFound):
    """The model is configured, but its files do not exist."""


class MissingExtra(LlmosError):
    """The feature needs an optional part of the installation. `data["extra"]` is the extra to install."""


class InvalidCall(LlmosError):
    """An argument of a system call is not allowed. The message names the argument and its value."""


class BadArguments(InvalidCall):
    """The arguments do not fit the signature of the program or tool."""


class BackupFailed(LlmosError):
    """The journal could not be copied. The message gives the reason."""


class KeyReused(InvalidCall):
    """The idempotency key belongs to a task with another program or other arguments."""


class NotEncodable(InvalidCall):
    """Msgpack cannot carry the value. The message names its type."""


class NotStorable(InvalidCall):
    """The journal cannot store a value, and will not be able to later. The message gives the reason."""


class InvalidPrompt(InvalidCall):
    """The prompt is empty, or the chat template of the model refuses it."""


class InvalidConstraint(InvalidCall):
    """The schema, regex, grammar or list of choices cannot be enforced, or a call has two of them."""


class ContextOverflow(InvalidCall):
    """Prompt and reply together exceed the model's context. `data`: `prompt_tokens`, `max_tokens`, `context`."""


class InvalidWorkload(InvalidCall):
    """The trace, recording or workload cannot be simulated. The message gives the place and the reason."""


class InvalidDevice(InvalidCall):
    """The device file cannot be read, or its figures contradict each other."""


class CalibrationFailed(LlmosError):
    """The measurements of a running daemon do not yield a device model."""


class NotPermitted(LlmosError):
    """The caller may not make this call. Some calls are only for clients, and others only for agents."""


class MailboxFull(LlmosError):
    """The recipient's mailbox is full, and the sender does not wait. `data`: `to` and `capacity` in messages."""


class NameTaken(InvalidCall):
    """Another living process holds the name. `data["pid"]` is that process."""


class UndeclaredType(InvalidCall):
    """The recipient does not accept messages of this type. `data`: `type`, and `accepts`: the declared types."""


class BadMessage(InvalidCall):
    """The body does not fit the Struct that the recipient declares for the type of the message."""


class MessageTooLarge(InvalidCall):
    """The body of the message is too large. `data`: `size` and `limit` in bytes. Put the value into a shared region."""


class VersionConflict(LlmosError):
    """The shared region has changed since the caller read it. `data`: the versions `expected` and `found`."""


class NotACall(InvalidCall):
    """The message expects no reply, or has been answered already."""


class NotHeld(InvalidCall):
    """The calling thread does not hold this lock or permit."""


class SyncMismatch(InvalidCall):
    """The name belongs to a primitive of another kind, or with another number of permits or parties."""


class DeadlockDetected(LlmosError):
    """The wait would never end: it would close a knot, a set of threads that only these threads could wake.

    `data`: `size`, the number of threads in the knot, and `knot`, a row for each of the first of them. A row has `pid`,
    `program`, `waits_for`, and `ended_by`: the pids of the processes that could end the wait.
    """


class Busy(LlmosError):
    """A limit of the daemon is reached. `data["retry_after"]` suggests after how many seconds to try again."""


class ShuttingDown(Busy):
    """The daemon is stopping and accepts no new tasks."""


class TooManyRestarts(LlmosError):
    """A supervisor gave up, because its children ended too often. `data`: `program` and `error` of the last end."""


class TooManyAttempts(LlmosError):
    """The daemon died too often while it ran this task, and will not run it again. `data["attempts"]` is the limit."""


class ReplayDiverged(LlmosError):
    """A replay made another call than the recorded one. `data`: the calls `then` and `now`, `thread`, `number`."""


class HistoryDamaged(LlmosError):
    """The journal's records of a durable task cannot be read."""


class CheckpointRefused(InvalidCall):
    """A process with more than one thread, or with living children, cannot make a checkpoint."""


class TimedOut(LlmosError):
    """The caller's timeout passed. The work that it waited for, if any, goes on."""


class DeadlineUnreachable(LlmosError):
    """A model call was ended while it waited for a slot, because it could not meet the deadline of its task."""


class DeadlineExceeded(LlmosError):
    """The deadline of the process passed, so the daemon ended the process."""


class LimitExceeded(LlmosError):
    """A limit of the process or its owner is reached. `data`: `limit` (its name), `maximum`, `wanted`."""


class BurstExceeded(LlmosError):
    """The agent held the daemon's loop for too long without an `await`. `data["limit"]` is in seconds."""


class Killed(LlmosError):
    """The process was killed, or is ending and may make no more calls. The message names the killer or the reason."""


class AgentFailed(LlmosError):
    """The agent's code raised an error from outside this tree. `data`: see `ErrorInfo`, and the `program`."""


class ToolFailed(LlmosError):
    """The tool raised an error, or cannot be loaded. `data["traceback"]` is the text of the traceback."""


class InvalidReply(LlmosError):
    """The reply does not satisfy its constraint, often because `max_tokens` cut it off. `data["text"]` is the reply."""


class ModelLoadFailed(LlmosError):
    """The model could not be loaded."""


class ModelChanged(LlmosError):
    """The model's files changed during a reply of which the client has seen a part. A new call uses the new files."""


class DriverFailed(LlmosError):
    """The model's driver died too often, or gave an impossible answer, such as a probability that is not a number."""


def to_wire(error: BaseException) -> ErrorInfo:
    """The wire form of `error`. An error from outside the tree becomes `LlmosError`, with its type in the message.

    The result can always be encoded, and its message is bounded. If `error` itself cannot be encoded, characters that
    UTF-8 cannot carry, such as a lone surrogate, become "?", and all facts that are not texts are left out.
    """
    text = text_of(error)
    if len(text) > MAX_TEXT:
        text = bounded(text, MAX_TEXT)
    if is_a(error, LlmosError):
        return encodable(ErrorInfo(class_name(error), text, facts_of(error)))
    return encodable(ErrorInfo("LlmosError", f"{class_name(error)}: {text}"))


def text_of(error: BaseException) -> str:
    """The text of `error`, without its type. Never raises, although agents write the methods that compute it."""
    text = text_by(_message if is_a(error, LlmosError) else str, error)
    return "(its text cannot be computed)" if text is None else text


def brief(error: BaseException) -> str:
    """The name of the type of `error`, and its text, both shortened: for errors of code that is not ours."""
    text = bounded(text_of(error), MAX_BRIEF)
    return f"{class_name(error)}: {text}" if text else class_name(error)


def _message(error: LlmosError) -> Any:
    return error.message


def facts_of(error: BaseException) -> dict[str, Any]:
    """The facts of an error of this tree. Empty for others, and for an agent's subclass that does not set them."""
    facts = attributes_of(error).get("data") if is_a(error, LlmosError) else None
    return facts if type(facts) is dict else {}


def encodable(info: ErrorInfo) -> ErrorInfo:
    """`info`, or a form of it that can be encoded: see `to_wire`."""
    try:
        msgspec.msgpack.encode(info)
    except BaseException:  # the facts may be objects of an agent
        facts = {
            _encodable(name): _encodable(fact)
            for name, fact in info.data.items()
            if is_a(name, str) and is_a(fact, str)
        }
        info = ErrorInfo(_encodable(info.code), _encodable(info.message), facts)
    return info


def _encodable(text: str) -> str:
    return str.__str__(text).encode(errors="replace").decode()


def from_wire(info: ErrorInfo) -> LlmosError:
    """The exception that `info` describes. If the `code` is unknown, it is a plain `LlmosError` that names the code."""
    kind = LlmosError.registry.get(info.code)
    if kind is not None:
        try:
            return kind(info.message, **info.data)
        except (Exception, SystemExit, GeneratorExit):  # an agent's own class, with another constructor
            pass
    message = info.message if info.code == "LlmosError" else f"{info.code}: {info.message}"
    return LlmosError(message, **info.data)
