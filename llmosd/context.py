"""The context: what an agent sees of the kernel. Each method is one system call.

Made by the daemon for every process and handed to its coroutine. It holds no state of its own and decides nothing:
the gate does.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import msgspec

from ipc.codec import reveal
from ipc.errors import InvalidCall, from_wire
from ipc.messages import Message
from ipc.syscalls import (
    Call,
    ChatMessage,
    Emit,
    ExitStatus,
    Generate,
    Kill,
    Receive,
    Reply,
    Sampling,
    Send,
    Sleep,
    Spawn,
    Wait,
    WriteLog,
)

if TYPE_CHECKING:
    from kernel.gate import Gate
    from kernel.process import Process

Messages = Iterable[Mapping[str, str] | ChatMessage]


class ChatOptions(TypedDict, total=False):
    """Keywords of `chat` and `generate`; what is left out takes the daemon's default.

    `temperature` 0 is greedy; `top_k` keeps the k likeliest tokens, `top_p` the likeliest that sum to p; the same
    `seed` draws the same tokens; text ends before any `stop` string; with `emit` tokens also go to whoever submitted
    the task, as they come.
    """

    model: str | None
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    seed: int | None
    stop: str | list[str] | None
    emit: bool


class Context:
    """An agent's view of its process. Methods raise the errors that `ipc.syscalls` names for their call."""

    __slots__ = ("_gate", "_process")

    def __init__(self, gate: Gate, process: Process) -> None:
        self._gate = gate
        self._process = process

    @property
    def pid(self) -> int:
        """The number of this process."""
        return self._process.pid

    # ---- models

    def chat(self, messages: Messages, **options: Unpack[ChatOptions]) -> Coroutine[Any, Any, str]:
        """The model's reply to a conversation of {"role", "content"} messages, through its chat template."""
        try:
            prompt = msgspec.convert(list(messages), list[ChatMessage], from_attributes=True)
        except msgspec.ValidationError as error:
            raise InvalidCall(f"chat takes a list of {{role, content}} messages: {error}") from None
        return self._generate(prompt, options)

    def generate(self, prompt: str, **options: Unpack[ChatOptions]) -> Coroutine[Any, Any, str]:
        """The model's continuation of `prompt`, without any template."""
        return self._generate(prompt, options)

    def _generate(self, prompt: list[ChatMessage] | str, options: ChatOptions) -> Coroutine[Any, Any, str]:
        given: dict[str, Any] = dict(options)
        model, emit, stop = given.pop("model", None), given.pop("emit", True), given.pop("stop", None)
        given["stop"] = (stop,) if isinstance(stop, str) else tuple(stop or ())
        unknown = given.keys() - set(Sampling.__struct_fields__)
        if unknown:
            raise TypeError(f"no such option: {', '.join(sorted(unknown))}")
        try:
            sampling = msgspec.convert(given, Sampling)
        except msgspec.ValidationError as error:
            raise InvalidCall(f"generation options: {error}") from None
        return self._gate.call(self._process, Generate(prompt, model, sampling, emit))

    # ---- messages

    def send(
        self,
        to: int,
        body: Any,
        *,
        type: str = "",  # noqa: A002 - the field's name in the envelope
        priority: int = 0,
        wait: bool = True,
        lifetime: float | None = None,
    ) -> Coroutine[Any, Any, int]:
        """Put a message into the mailbox of process `to`; its id. A full mailbox is waited for if `wait`."""
        return self._gate.call(self._process, Send(to, body, type, priority, wait, lifetime))

    async def receive(self, *, timeout: float | None = None) -> Message:
        """The most urgent message in the own mailbox, waiting for one at most `timeout` seconds."""
        message: Message = await self._gate.call(self._process, Receive(timeout))
        if isinstance(message.body, msgspec.Raw):
            return msgspec.structs.replace(message, body=reveal(message.body))
        return message

    async def call(
        self,
        to: int,
        body: Any,
        timeout: float | None = None,
        *,
        type: str = "",  # noqa: A002
        priority: int = 0,
    ) -> Any:
        """Send to process `to` and wait for what it replies."""
        return reveal(await self._gate.call(self._process, Call(to, body, timeout, type, priority)))

    def reply(self, message: Message, body: Any) -> Coroutine[Any, Any, None]:
        """Answer a message that came by `call`."""
        return self._gate.call(self._process, Reply(message.sender, message.correlation, body))

    # ---- processes

    def spawn(
        self,
        program: str,
        args: Mapping[str, Any] | None = None,
        *,
        priority: int | None = None,
        deadline: float | None = None,
        owner: str | None = None,
        detach: bool = False,
    ) -> Coroutine[Any, Any, int]:
        """Start another program; its pid. It dies with this process unless `detach`."""
        call = Spawn(program, dict(args or {}), (), False, priority, deadline, owner, detach)
        return self._gate.call(self._process, call)

    async def wait(self, pid: int, timeout: float | None = None) -> Any:
        """The result of process `pid`, when it has ended. Raises its error if it failed."""
        status: ExitStatus = await self._gate.call(self._process, Wait(pid, timeout))
        if status.error is not None:
            raise from_wire(status.error)
        return reveal(status.value)

    async def kill(self, pid: int) -> None:
        """End process `pid` and its children; returns when it is gone."""
        await self._gate.call(self._process, Kill(pid))

    def sleep(self, seconds: float) -> Coroutine[Any, Any, None]:
        """Do nothing for `seconds`."""
        return self._gate.call(self._process, Sleep(seconds))

    # ---- output

    def emit(self, value: Any) -> Coroutine[Any, Any, None]:
        """Hand `value` to whoever submitted the task; waits while they are behind. Nobody there: it is gone."""
        return self._gate.call(self._process, Emit(value))

    def log(self, event: str, *, level: str = "info", **fields: Any) -> None:
        """Add a line to the log of this process."""
        self._gate.enter(self._process, WriteLog(level, event, fields))
