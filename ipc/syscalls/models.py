"""Models: generate, score and embed text, and show the slots that do it."""

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
    """The form that a reply must have.

    JSON that fits a `schema` (its JSON text), one of `choices` (a JSON list of texts), a match of a `regex`, or a
    sentence of a `grammar` (Lark syntax).
    """

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


class Completion(msgspec.Struct, frozen=True):
    """One reply in full: its text, its tokens with their log probabilities (if asked for), and why it ended.

    `reason`: "stop" (end of text, a stop string, or a constraint that is satisfied) or "length" (`max_tokens`).
    """

    text: str
    ids: list[int]
    logprobs: list[float]
    reason: str


class Score(msgspec.Struct, frozen=True):
    """How likely a continuation is: the natural logarithm of its probability, and its length in tokens."""

    logprob: float
    tokens: int


class ModelInfo(msgspec.Struct, frozen=True):
    """A configured model and its state.

    `state` is "unloaded", "waiting" (for memory), "loading", "ready", "leaving", "restarting" or "failed". `detail`
    says more, such as the reason and what has to happen next.
    """

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

    `policy` says who gets one, and `policy_reason` why it does as it does, if it changes itself.
    `tokens_per_second` is the rate of the last steps, `restarts` counts driver deaths survived, `memory` is the
    driver's resident set in bytes. `given` of the slots are given out at present, fewer than there are while memory is
    short, and `cause` says why. Keys and values take `kv_used` of `kv_memory` bytes, besides `kv_cached` for prefixes
    and `kv_disk` bytes for those on disk; of `prompt_tokens` so far `prompt_hits` were found computed (`prompt_reread`
    were read from the disk for that), and `prompt_evicted` were given up. `kv_waiting` sequences wait for memory,
    `swapped` lie on disk; so far `swap_outs` went there, `restores` came back, and `recomputations` were computed anew;
    `swap_refused` says why the last one that was to go there did not. `cores`: processors of the driver. `idle`:
    seconds without any work, and `keep_alive` the seconds of it after which the driver ends.
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
    given: int = 0
    cause: str = ""
    kv_used: int = 0
    kv_cached: int = 0
    kv_memory: int = 0
    kv_waiting: int = 0
    swapped: int = 0
    swap_outs: int = 0
    restores: int = 0
    recomputations: int = 0
    cores: int = 0
    idle: float = 0.0
    keep_alive: float = 0.0
    policy: str = ""
    policy_reason: str = ""
    swap_refused: str = ""
    kv_disk: int = 0
    prompt_tokens: int = 0
    prompt_hits: int = 0
    prompt_evicted: int = 0
    prompt_reread: int = 0


class PolicyInfo(msgspec.Struct, frozen=True):
    """The policy of the slots of a model, and what is set about it.

    `quantum` is in tokens, `aging` in priorities per second, `weights` are shares by owner. `reason` says what a policy
    that changes itself last changed, and why.
    """

    model: str
    kind: str
    quantum: int
    aging: float
    weights: dict[str, float]
    starvation: float
    reason: str = ""


class SequenceInfo(msgspec.Struct, frozen=True):
    """One sequence: who runs it, how far it is, what is left of its lease, and its place in the queue (0: none).

    `preemptions`: how often it was taken off its slot for a more urgent one. `kept` says where its state is: "memory",
    "disk", or nowhere; `recomputed` why it had to be computed anew, if it had.
    """

    sequence: int
    pid: int
    program: str
    state: str
    position: int
    prompt_tokens: int
    generated_tokens: int
    lease: int
    priority: int = 0
    preemptions: int = 0
    kept: str = ""
    recomputed: str = ""


class FinishedCall(msgspec.Struct, frozen=True, gc=False):
    """A generation that is over.

    `number` counts them up. `program_id` is that of the task as part of which it was scheduled. `limit` is its bound on
    tokens, 0 for none. `error` names what cut it off, if anything did.

    Times are in seconds of the daemon's clock: when it came, got its slot, had its first token, and ended; `deadline`
    when its task has to end.
    """

    number: int
    model: str
    pid: int
    program: str
    program_id: int
    owner: str
    weight: float
    priority: int
    deadline: float | None
    prompt: int
    generated: int
    limit: int
    submitted: float
    started: float | None
    first: float | None
    ended: float
    preemptions: int
    error: str = ""


class Generate(Syscall, tag="generate"):
    """Run a model on `prompt` (chat messages or text to continue).

    Answers the text; a list of `Completion` if there are several `samples` (drawn with `seed`, `seed` + 1, ...) or
    `logprobs` are asked for. With `emit`, tokens also go to whoever submitted the task. Errors: `UnknownModel`,
    `ModelNotFound`, `MissingExtra`, `ModelLoadFailed`, `ContextOverflow`, `InvalidPrompt`, `InvalidConstraint`,
    `InvalidReply`, `DriverFailed`, `Busy`.
    """

    prompt: list[ChatMessage] | str
    model: str | None = None
    sampling: Sampling = Sampling()
    emit: bool = True
    samples: int = 1
    returns: ClassVar[Any] = str | list[Completion]


class ScoreText(Syscall, tag="score"):
    """How likely each of `continuations` is after `prompt`; answers a `Score` for each.

    Errors: those of `Generate`, and `InvalidCall` for an empty list or text.
    """

    prompt: list[ChatMessage] | str
    continuations: list[str]
    model: str | None = None
    returns: ClassVar[Any] = list[Score]


class EmbedTexts(Syscall, tag="embed"):
    """Turn each of `texts` into a vector of length 1 that says what it is about. Errors: as of `ScoreText`."""

    texts: list[str]
    model: str | None = None
    returns: ClassVar[Any] = list[list[float]]


class Models(Syscall, tag="models"):
    """The configured models."""

    returns: ClassVar[Any] = list[ModelInfo]


class Slots(Syscall, tag="slots"):
    """The slots of every model that was asked for."""

    returns: ClassVar[Any] = list[SlotInfo]


class FinishedCalls(Syscall, tag="finished_calls"):
    """The last generations that ended, those with a number above `after`; the daemon remembers some thousands."""

    after: int = 0
    returns: ClassVar[Any] = list[FinishedCall]


class SetPolicy(Syscall, tag="policy"):
    """Change what is given of the policy of `model` (None: the default one), and answer how it is then.

    Without anything given it only answers. `weights` are set for the owners named, those of others stay. No sequence is
    lost: who runs goes on unless the new policy decides otherwise, who waits has waited as long. Only clients may.
    Errors: `UnknownModel`, `ModelNotFound`, `InvalidPolicy`.
    """

    model: str | None = None
    kind: str | None = None
    quantum: int | None = None
    aging: float | None = None
    weights: dict[str, float] = {}
    starvation: float | None = None
    returns: ClassVar[Any] = PolicyInfo


ModelCalls = Generate | ScoreText | EmbedTexts | Models | Slots | SetPolicy | FinishedCalls
