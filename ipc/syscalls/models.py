"""Models: generate text, and show the slots that do it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from ipc.syscalls.base import Syscall


class ChatMessage(msgspec.Struct, frozen=True):
    """One turn of a conversation, as chat templates take it."""

    role: str
    content: str


class Constraint(msgspec.Struct, frozen=True):
    """What a reply has to be: JSON that fits a `schema` (its JSON text), one of `choices` (a JSON list of texts), a
    match of a `regex`, or a sentence of a `grammar` (Lark syntax)."""

    kind: Literal["schema", "choices", "regex", "grammar"]
    value: str


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How to choose tokens. None leaves the daemon's default.

    `temperature` 0 is greedy. `top_k` keeps the k likeliest tokens, `top_p` the likeliest that sum to p. The noise of
    a draw is a function of (`seed`, position) alone. Text ends before the first of the `stop` strings. With `logprobs`
    the natural logarithm of each token's probability (before temperature) is reported, too.
    """

    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=1)] | None = None
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    stop: tuple[Annotated[str, Meta(min_length=1)], ...] = ()
    constraint: Constraint | None = None
    logprobs: bool = False


class ModelInfo(msgspec.Struct, frozen=True):
    """A configured model. `state`: "unloaded", "loading", "ready", "restarting" or "failed"; `detail` says more."""

    name: str
    driver: str
    path: str
    default: bool
    state: str
    detail: str
    context: int | None
    facts: dict[str, Any]


class SlotInfo(msgspec.Struct, frozen=True):
    """The slots of one model: how many there are, hold a sequence, and how many calls queue for one.

    `tokens_per_second` is the rate of the last steps, `restarts` counts driver deaths survived, `memory` is the
    driver's resident set in bytes.
    """

    model: str
    state: str
    detail: str
    driver_pid: int | None
    slots: int
    used: int
    queued: int
    tokens: int
    tokens_per_second: float
    steps: int
    restarts: int
    memory: int
    sequences: list[SequenceInfo]


class SequenceInfo(msgspec.Struct, frozen=True):
    """One sequence: who runs it, how far it is, what is left of its lease, and its place in the queue (0: none)."""

    sequence: int
    pid: int
    program: str
    state: str
    position: int
    prompt_tokens: int
    generated_tokens: int
    lease: int


class Generate(Syscall, tag="generate"):
    """Run a model on `prompt` (chat messages or text to continue); answers the text.

    With `emit`, tokens also go to whoever submitted the task. Errors: `UnknownModel`, `ModelNotFound`,
    `MissingExtra`, `ModelLoadFailed`, `ContextOverflow`, `InvalidPrompt`, `DriverFailed`, `Busy`.
    """

    prompt: list[ChatMessage] | str
    model: str | None = None
    sampling: Sampling = Sampling()
    emit: bool = True
    returns: ClassVar[Any] = str


class Models(Syscall, tag="models"):
    """The configured models."""

    returns: ClassVar[Any] = list[ModelInfo]


class Slots(Syscall, tag="slots"):
    """The slots of every model that was asked for."""

    returns: ClassVar[Any] = list[SlotInfo]


ModelCalls = Generate | Models | Slots
