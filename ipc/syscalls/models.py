"""Models: generate, score and embed text; show models, slots and ended calls; change the policy of the slots."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from ipc.syscalls.base import Integer, Positive, Syscall


class ChatMessage(msgspec.Struct, frozen=True):
    """One turn of a conversation, in the form that chat templates take."""

    role: str
    content: str


class Constraint(msgspec.Struct, frozen=True):
    r"""The form that a reply must have: `value` is a text of at most 1,000,000 characters.

    `schema`: a JSON schema, which the reply fits. `choices`: a JSON list of texts, of which the reply is one. `regex`:
    the reply matches it as a whole. `grammar`: the reply is a sentence of it (Lark syntax). Regular expressions have no
    look-around and no references; `\d`, `\w` and `\s` stand for ASCII characters, as with Python's `re.ASCII`, and
    `(?i)` ignores case as Unicode does. In a `pattern` of a schema, `\s` stands for all white space of Unicode. A reply
    never contains special tokens: in a constraint, `<|im_end|>` is text like any other.
    """

    kind: Literal["schema", "choices", "regex", "grammar"]
    value: str


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How to choose tokens. None means the default of the model or the daemon.

    `max_tokens` bounds the reply. `temperature` 0 is greedy. `top_k` keeps the k likeliest tokens, and `top_p` the
    likeliest tokens whose probabilities sum to p. The random numbers depend only on `seed` and on the position of a
    token, so the same seed draws the same tokens; a call without a seed gets a random one. The text ends before the
    first `stop` string, which may be or contain the name of a special token, such as `<|im_end|>`; at most 128 stop
    strings of 10,000 characters together are allowed. With `logprobs` the natural logarithm of each token's
    probability, before temperature, is reported as well.
    """

    max_tokens: Positive | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Positive | None = None
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    stop: tuple[Annotated[str, Meta(min_length=1)], ...] = ()
    constraint: Constraint | None = None
    logprobs: bool = False


class Completion(msgspec.Struct, frozen=True):
    """One reply: its text, the ids of its tokens, their log probabilities if requested, and why it ended.

    `reason`: "stop" (end of text, a stop string, or a satisfied constraint), "length" (the `max_tokens` of the call, or
    else the default limit of the model), or "context" (prompt and reply fill the model's context). `prompt_tokens` and
    `tokens`: the lengths of the prompt and of the reply in tokens. `value`: the value of a `schema`, which the context
    decodes from the text; None in answers to clients.
    """

    text: str
    ids: list[int]
    logprobs: list[float]
    reason: str
    prompt_tokens: int = 0
    tokens: int = 0
    value: Any = None

    def __post_init__(self) -> None:
        if not self.tokens:  # in the journal of an older version, a reply has no `tokens`
            msgspec.structs.force_setattr(self, "tokens", len(self.ids))


class Score(msgspec.Struct, frozen=True):
    """The natural logarithm of a continuation's probability, and its length in tokens.

    A continuation begins where the prompt ends, as a reply does: "ing" after "walk" is scored as the end of "walking".
    The tokens of the prompt are those of the prompt alone, so no token spans the seam.
    """

    logprob: float
    tokens: int


class ModelInfo(msgspec.Struct, frozen=True):
    """A model and its state.

    `state`: "unloaded", "waiting" (for memory), "loading", "ready", "leaving" (it is being unloaded), "restarting" (its
    driver died) or "failed". `detail`: the reason for the state, and the event that will end it. `context`: the most
    tokens of a prompt and its reply together; None before the first load. `facts`: figures that the driver reported.
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
    """The slots of one model, and the memory behind them. Counters begin with the daemon; sizes are in bytes.

    Of `slots` slots, `given` may be used now; if these are not all, `cause` gives the reason, such as a lack of memory.
    `used` slots hold a sequence, and `queued` sequences wait for a slot. `policy` decides which sequence gets a slot.
    `policy_reason`: why the policy `auto` last changed its choice. `state` is that of `ModelInfo`; so is `detail`, but
    it also says for how long a model that waits for memory waits at most, and when a model leaves memory.

    The drivers of the model have made `tokens` tokens in `steps` steps, recently `tokens_per_second`; `restarts` counts
    restarts. The present driver has the pid `driver_pid` and the resident set `memory`, and runs on `cores` processors.
    A driver ends after `keep_alive` seconds without work; `idle`: seconds without work so far.

    Of the KV memory `kv_memory`, sequences use `kv_used`, and cached prefixes use `kv_cached`; `kv_disk` is the size of
    the prefixes on disk. Of `prompt_tokens` tokens of prompts, `prompt_hits` were found in the cache, and of these
    `prompt_reread` on disk; `prompt_evicted` tokens were evicted. `kv_waiting` sequences wait for KV memory, and
    `swapped` sequences are on disk.
    `swap_outs`, `restores` and `recomputations` count sequences that were swapped out, swapped in, and computed again;
    `swap_refused`: why the last swap-out that failed was refused.
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
    """The policy of a model's slots, and its settings.

    `kind`: the name of the policy. `quantum` is in tokens, `aging` in priorities per second. `weights`: shares by
    owner; an owner without a weight has 1. `starvation`: a call that has waited this many times as long as it was
    served goes first; 0: never. `reason`: the last choice of the policy `auto`, and why.
    """

    model: str
    kind: str
    quantum: int
    aging: float
    weights: dict[str, float]
    starvation: float
    reason: str = ""


class SequenceInfo(msgspec.Struct, frozen=True):
    """One sequence, on a slot or in the queue for a slot.

    `state`: "queued", "running", "parked" or "finished". `position`: its place in the queue, from 1; 0 if it is not in
    the queue. `lease`: tokens that it may still make before its lease is renewed. `preemptions`: how often it lost its
    slot to another sequence. `kept`: where its KV cache is, "memory", "disk" or "" (nowhere). `recomputed`: why its KV
    cache had to be computed again; "" if it was not.
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
    """A generation that has ended. Traces of the workload consist of these.

    `number` counts generations from 1. `program_id`: its scheduling group; `weight` and `owner` are those of the group.
    `prompt` and `generated` are in tokens. `limit`: its `max_tokens`, 0 for none. `error`: the name of the error that
    ended it, or "cancelled", or "".

    Times are in seconds of the daemon's monotonic clock: `submitted`, `started` (on a slot), `first` (token), `ended`,
    and the `deadline` of its task.
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
    """Generate a reply to chat messages, or a continuation of a text.

    Answers the text; or, with `full`, more than one sample or `logprobs`, a list of `Completion`. `model`: a configured
    name or a path; None is the default model. `samples`: the number of replies, 1 to 1,024; they are drawn with the
    seeds `seed`, `seed` + 1 and so on. With `emit`, the client that submitted the task gets the tokens as events. A
    reply that is cut although the call sets no `max_tokens` adds a warning to the log of the process, unless `full`.
    Errors: `UnknownModel`, `ModelNotFound`, `MissingExtra`, `ModelLoadFailed`, `ContextOverflow`, `InvalidPrompt`,
    `InvalidConstraint`, `InvalidReply` (every constrained reply was cut), `InvalidCall`, `LimitExceeded`,
    `DeadlineUnreachable`, `DriverFailed`, `ModelChanged`, `Busy`.
    """

    prompt: list[ChatMessage] | str
    model: str | None = None
    sampling: Sampling = Sampling()
    emit: bool = True
    samples: Integer = 1
    full: bool = False
    appended: ClassVar[int] = 1
    returns: ClassVar[Any] = str | list[Completion]


class ScoreText(Syscall, tag="score"):
    """Compute how likely each continuation is after `prompt`; answers a `Score` for each.

    `continuations`: 1 to 4,096 texts, none of them empty. Errors: those of `Generate`, except those about replies.
    """

    prompt: list[ChatMessage] | str
    continuations: list[str]
    model: str | None = None
    returns: ClassVar[Any] = list[Score]


class EmbedTexts(Syscall, tag="embed"):
    """Compute an embedding of each text; answers vectors of length 1, whose scalar product measures similarity.

    `texts`: 1 to 4,096 texts, none of them empty. Errors: those of `ScoreText`.
    """

    texts: list[str]
    model: str | None = None
    returns: ClassVar[Any] = list[list[float]]


class Models(Syscall, tag="models"):
    """Answers the configured models, and those that were called by path."""

    returns: ClassVar[Any] = list[ModelInfo]


class Slots(Syscall, tag="slots"):
    """Answers the slots of each model that was used in this run of the daemon.

    A row has at most 1,000 sequences: those on slots, then the first ones of the queue.
    """

    returns: ClassVar[Any] = list[SlotInfo]


class FinishedCalls(Syscall, tag="finished_calls"):
    """Answers the ended generations with a number above `after`, the oldest first; at most the last 16,384.

    One answer has at most a page of rows. The number of its last row is the `after` of the next page.
    """

    after: Integer = 0
    page: ClassVar[int] = 4_096
    returns: ClassVar[Any] = list[FinishedCall]


class SetPolicy(Syscall, tag="policy"):
    """Change the policy of the slots of `model` (None: the default model); answers the policy after the change.

    A field that is None changes nothing, so a call without fields only reads the policy. An owner that `weights` does
    not name retains its weight. No sequence is lost: running sequences go on unless the new policy preempts them, and
    the time that a sequence has waited still counts. Clients only. Errors: `UnknownModel`, `ModelNotFound`,
    `InvalidPolicy`.
    """

    model: str | None = None
    kind: str | None = None
    quantum: Integer | None = None
    aging: float | None = None
    weights: dict[str, float] = {}
    starvation: float | None = None
    returns: ClassVar[Any] = PolicyInfo


ModelCalls = Generate | ScoreText | EmbedTexts | Models | Slots | SetPolicy | FinishedCalls
