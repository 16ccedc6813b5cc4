"""The driver protocol: the messages that the kernel and a driver process exchange.

Used by the kernel's model runtimes and by every driver. Counts are in tokens, times in seconds. A driver holds the
sequences that were admitted, runs those with a lease together, step by step, and reports bundles of tokens; it never
decides policy. Each driver process has its own connection, so all messages on one connection are from one incarnation.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ipc.errors import ErrorInfo
from ipc.syscalls import ChatMessage, Sampling

DISK_RESERVE = 1_000_000_000  # bytes; while the disk has less free space, neither kernel nor driver writes KV to it

# ---- kernel to driver


class Load(msgspec.Struct, tag="load"):
    """The first message: load this model. Answered by any number of `Loading`, then `Loaded` or `LoadFailed`.

    `model` is "embedded", a path or a hub name. `cache` is a folder for converted weights and measurements; `disk` is a
    folder for cached prefixes, or empty to cache none on disk. `max_tokens` limits a generation whose call sets no
    limit. `kv_memory` is the size of the KV cache in bytes; None lets the driver choose. `cores` are the processors to
    run on; empty means all.
    """

    model: str
    cache: str
    max_tokens: int
    options: dict[str, Any] = {}
    kv_memory: int | None = None
    cores: list[int] = []
    disk: str = ""


class Admit(msgspec.Struct, tag="admit"):
    """Run a generation; its first lease is `lease` tokens.

    A new generation carries `prompt`: chat messages or plain text. A generation that was admitted before, to an earlier
    incarnation or before it was swapped out, also carries `prompt_ids`, the `generated` ids so far, and `released`, the
    count of characters already reported as text: the driver continues as if it had never stopped, and reports only new
    tokens and text. `swapped` is the file with its KV, if it was swapped out. The driver refuses a file that does not
    fit the generation, and recomputes the KV; `Restored` reports whether it read the file or recomputes.

    `process` is the number of the process that the generation belongs to: the driver caches prefixes by process.
    `expected_think_time`: seconds from the end of this call until its program usually makes the next; 0 if unknown.
    """

    sequence: int
    prompt: list[ChatMessage] | str
    sampling: Sampling
    lease: int
    prompt_ids: list[int] | None = None
    generated: list[int] = []
    released: int = 0
    process: int = 0
    swapped: str = ""
    expected_think_time: float = msgspec.field(default=0.0, name="away")


class ScoreQuery(msgspec.Struct, tag="score"):
    """Compute the probability of each of `continuations` after `prompt`. Answered by `Scored` or `SequenceFailed`."""

    sequence: int
    prompt: list[ChatMessage] | str
    continuations: list[str]
    process: int = 0


class EmbedQuery(msgspec.Struct, tag="embed"):
    """Compute a vector for each of `texts`: the mean of the text's last hidden states, scaled to length 1.

    Answered by `Embedded` or `SequenceFailed`.
    """

    sequence: int
    texts: list[str]
    process: int = 0


class Renew(msgspec.Struct, tag="renew"):
    """Extend the lease of a sequence by `tokens`. A parked sequence runs again."""

    sequence: int
    tokens: int


class Revoke(msgspec.Struct, tag="revoke"):
    """End the lease and park the sequence before the next step; its KV stays in memory.

    Answered by `Parked`, unless the sequence has ended. A sequence that is parked already need not be reported again.
    """

    sequence: int


class Cancel(msgspec.Struct, tag="cancel"):
    """End a sequence or query before the next step and free its memory. Answered by `Done` with reason "cancelled"."""

    sequence: int


class SwapOut(msgspec.Struct, tag="swap_out"):
    """Write the KV of a parked sequence to `path` and forget the sequence. Answered by `SwappedOut`."""

    sequence: int
    path: str


class Ended(msgspec.Struct, tag="ended"):
    """These processes have ended: the driver need not cache prefixes for them any longer."""

    processes: list[int]


class Resize(msgspec.Struct, tag="resize"):
    """Limit the KV cache to `kv_memory` bytes. A sequence never loses memory that it already has beyond this limit."""

    kv_memory: int


class Stop(msgspec.Struct, tag="stop"):
    """Exit now."""


ToDriver = Load | Admit | ScoreQuery | EmbedQuery | Renew | Revoke | Cancel | SwapOut | Ended | Resize | Stop

# ---- driver to kernel


class Loading(msgspec.Struct, tag="loading"):
    """Progress of a load: its current stage, and the finished `fraction` of that stage, if known."""

    stage: str
    fraction: float | None = None


class Loaded(msgspec.Struct, tag="loaded"):
    """The model is ready. `context` is in tokens; `facts` are shown to people (dtype, device, attention, ...).

    The KV cache has `kv_memory` bytes, of which one token takes `token_bytes`. `identity` is a hash of the model's
    files: a generation never continues in a driver with another one. It is empty if the driver has no files.
    """

    context: int
    facts: dict[str, Any] = {}
    token_bytes: int = 0
    kv_memory: int = 0
    identity: str = ""


class LoadFailed(msgspec.Struct, tag="load_failed"):
    """The model cannot be loaded; the driver exits after this."""

    error: ErrorInfo


class Admitted(msgspec.Struct, tag="admitted"):
    """The prompt is tokenized and fits. Sent once per `Admit` without `prompt_ids`, before its first `Progress`."""

    sequence: int
    prompt_ids: list[int]


class Restored(msgspec.Struct, tag="restored"):
    """A sequence that was admitted before is back: its KV was read from its file, or is `recomputed`; `why` says why.

    A driver may leave this out for a sequence that had no generated tokens and no file.
    """

    sequence: int
    recomputed: bool
    why: str = ""


class SwappedOut(msgspec.Struct, tag="swapped_out"):
    """The driver wrote the KV of a sequence to the requested path in `seconds` and forgot the sequence.

    The file has `size` bytes. If `error` is set, the driver could not write it, and the sequence is parked as before.
    """

    sequence: int
    size: int
    seconds: float
    error: ErrorInfo | None = None


class Scored(msgspec.Struct, tag="scored"):
    """The natural logarithm of each continuation's probability, and its length in `tokens`. The query has ended."""

    sequence: int
    logprobs: list[float]
    tokens: list[int]
    prompt_tokens: int


class Embedded(msgspec.Struct, tag="embedded"):
    """A vector of length 1 for each text. The query has ended."""

    sequence: int
    vectors: list[list[float]]
    prompt_tokens: int


class Progress(msgspec.Struct, array_like=True):
    """New tokens of one sequence and the text that they release.

    The text may be empty: the driver holds back the possible beginning of a stop string, and bytes that are not a whole
    character yet. `logprobs` has one entry for each token, if the call requested them.
    """

    sequence: int
    ids: list[int]
    text: str
    logprobs: list[float] = []


class KVUsage(msgspec.Struct, frozen=True, array_like=True):
    """The state of the KV cache.

    In bytes: memory `used` by sequences, memory with `cached` prefixes, and prefixes on `disk`. In prompt tokens since
    the start: looked up in the cache (`asked`), found there (`hit`), discarded from it (`evicted`), and read back from
    the disk (`reread`). `waiting`: how many sequences and parts of queries wait for KV memory.
    """

    used: int = 0
    cached: int = 0
    asked: int = 0
    hit: int = 0
    evicted: int = 0
    waiting: int = 0
    disk: int = 0
    reread: int = 0


class Bundle(msgspec.Struct, tag="bundle"):
    """The tokens of one or several steps. `steps` is the number of steps, which took `seconds` together.

    If `steps` is 0 and `kv.waiting` is not, every sequence with a lease waits for KV memory, and the kernel must free
    some.
    """

    progress: list[Progress]
    steps: int
    seconds: float
    kv: KVUsage = KVUsage()


class Working(msgspec.Struct, tag="working"):
    """The driver is alive: no sequence can run, because it tokenizes, compiles, or reads or writes KV."""


class Parked(msgspec.Struct, tag="parked"):
    """The sequence runs no more, because its lease is used up or was revoked. `held`: whether it has KV in memory."""

    sequence: int
    held: bool = True


class Done(msgspec.Struct, tag="done"):
    """The sequence ended, and the driver has forgotten it. Earlier bundles reported all its tokens.

    `reason`: "stop" (end of text or a stop string), "length" (`max_tokens`), "context" (the context is full) or
    "cancelled".
    """

    sequence: int
    reason: str


class SequenceFailed(msgspec.Struct, tag="failed"):
    """The sequence cannot start or continue, and the driver has forgotten it. Its neighbours continue."""

    sequence: int
    error: ErrorInfo


FromDriver = (
    Loading
    | Loaded
    | LoadFailed
    | Admitted
    | Restored
    | Bundle
    | Working
    | Parked
    | SwappedOut
    | Done
    | Scored
    | Embedded
    | SequenceFailed
)
