"""The driver protocol: all that the kernel and a driver process say to each other.

Used by the kernel's model runtimes and by every driver. Counts are tokens, times are seconds. A driver holds the
sequences it was handed, runs the leased ones together one step after another, and reports bundles; it decides no
policy. Each driver process has a connection of its own, so a message can only come from the incarnation at its end.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ipc.errors import ErrorInfo
from ipc.syscalls import ChatMessage, Sampling

DISK_RESERVE = 1_000_000_000  # bytes: with less left on the disk, neither side writes keys and values to it

# ---- kernel to driver


class Load(msgspec.Struct, tag="load"):
    """First message: load this model. Answered by any number of `Loading`, then `Loaded` or `LoadFailed`.

    `model` is "embedded", a path or a hub name; `cache` a folder the driver may keep converted weights in;
    `max_tokens` bounds a sequence that names no bound of its own. `kv_memory`: bytes for keys and values, None leaves
    it to the driver; `cores`: the processors to run on, none for all.
    """

    model: str
    cache: str
    max_tokens: int
    options: dict[str, Any] = {}
    kv_memory: int | None = None
    cores: list[int] = []
    disk: str = ""


class Admit(msgspec.Struct, tag="admit"):
    """Run a new sequence, at most `lease` generated tokens for now.

    A fresh one carries `prompt` (chat messages, or plain text). One that ran in an earlier incarnation carries
    `prompt_ids`, the `generated` ids so far and `released`, the count of characters already reported as text: the
    driver goes on as if it had never stopped, and reports only what is new. If it was swapped out, `swapped` is the
    file with its state; one that does not fit is refused and the state computed anew. `Restored` tells which.

    `process` is the number of the process it belongs to, which keeps prefixes that it used.
    `expected_think_time`: seconds until its program usually makes its next call, once this one is over; 0 if unknown.
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


class Score(msgspec.Struct, tag="score"):
    """Tell how likely each of `continuations` is after `prompt`. Answered by `Scored` or `SequenceFailed`."""

    sequence: int
    prompt: list[ChatMessage] | str
    continuations: list[str]
    process: int = 0


class Embed(msgspec.Struct, tag="embed"):
    """Turn each of `texts` into a vector: the mean of its last hidden states.

    Answered by `Embedded` or `SequenceFailed`.
    """

    sequence: int
    texts: list[str]
    process: int = 0


class Renew(msgspec.Struct, tag="renew"):
    """Grant `tokens` more. Puts a sequence that was revoked or ran out of its lease back on its slot."""

    sequence: int
    tokens: int


class Revoke(msgspec.Struct, tag="revoke"):
    """Take the sequence off its slot before the next step and end its lease. Its state stays. Answered by `Parked`."""

    sequence: int


class Cancel(msgspec.Struct, tag="cancel"):
    """End the sequence before the next step and free all it holds. Answered by `Done` with reason "cancelled"."""

    sequence: int


class SwapOut(msgspec.Struct, tag="swap_out"):
    """Write the whole state of a parked sequence to `path`, and forget it. Answered by `SwappedOut`."""

    sequence: int
    path: str


class Ended(msgspec.Struct, tag="ended"):
    """These processes have ended: the prefixes that they used need not be kept for them."""

    processes: list[int]


class Resize(msgspec.Struct, tag="resize"):
    """From now on `kv_memory` bytes for keys and values. What lies above stays until it is given up."""

    kv_memory: int


class Stop(msgspec.Struct, tag="stop"):
    """Exit now."""


ToDriver = Load | Admit | Score | Embed | Renew | Revoke | Cancel | SwapOut | Ended | Resize | Stop

# ---- driver to kernel


class Loading(msgspec.Struct, tag="loading"):
    """Progress of a load: what is being done, and the share of it that is done, if known."""

    stage: str
    fraction: float | None = None


class Loaded(msgspec.Struct, tag="loaded"):
    """The model is ready. `context` in tokens; `facts` are shown to people (dtype, device, attention, ...).

    `token_bytes`: what one token takes of `kv_memory` bytes for keys and values.
    """

    context: int
    facts: dict[str, Any] = {}
    token_bytes: int = 0
    kv_memory: int = 0


class LoadFailed(msgspec.Struct, tag="load_failed"):
    """The model cannot be loaded; the driver exits after this."""

    error: ErrorInfo


class Admitted(msgspec.Struct, tag="admitted"):
    """The prompt is tokenized and fits. Sent once per `Admit` without `prompt_ids`, before its first `Progress`."""

    sequence: int
    prompt_ids: list[int]


class Restored(msgspec.Struct, tag="restored"):
    """What became of a sequence that ran before: its state was read back, or (`why` says why) is computed anew."""

    sequence: int
    recomputed: bool
    why: str = ""


class SwappedOut(msgspec.Struct, tag="swapped_out"):
    """The driver wrote the state of a sequence to the path asked for and forgot the sequence.

    The file has `size` bytes. With `error`, the driver could not write it, and the sequence is parked as before.
    """

    sequence: int
    size: int
    seconds: float
    error: ErrorInfo | None = None


class Scored(msgspec.Struct, tag="scored"):
    """For each continuation its natural logarithm of probability, and its length in tokens. The request is over."""

    sequence: int
    logprobs: list[float]
    tokens: list[int]
    prompt_tokens: int


class Embedded(msgspec.Struct, tag="embedded"):
    """A vector of length 1 for each text. The request is over."""

    sequence: int
    vectors: list[list[float]]
    prompt_tokens: int


class Progress(msgspec.Struct, array_like=True):
    """New tokens of one sequence and the text that they release.

    The text may be empty: stop strings and multi-byte characters are held back until they are decided. `logprobs` has
    one entry for each token, if asked for.
    """

    sequence: int
    ids: list[int]
    text: str
    logprobs: list[float] = []


class KVUsage(msgspec.Struct, frozen=True, array_like=True):
    """How the memory for keys and values is used.

    In bytes: `used` by sequences, `cached` for prefixes. In tokens of prompts since the start: `asked` for, found of
    these (`hit`), and `evicted`. `waiting` sequences wait for memory. Prefixes also take `disk` bytes on the disk, and
    `reread` tokens were read back from it.
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
    """What one or several steps produced. `steps` and `seconds`: how many steps, and their time in all.

    One without any step says that all who could run wait for memory (`kv.waiting`), which the kernel then makes.
    """

    progress: list[Progress]
    steps: int
    seconds: float
    kv: KVUsage = KVUsage()


class Parked(msgspec.Struct, tag="parked"):
    """The sequence is off its slot: its lease is used up or was revoked. `held`: it has memory, and keeps it."""

    sequence: int
    held: bool = True


class Done(msgspec.Struct, tag="done"):
    """The sequence ended, and the driver has forgotten it; all its tokens were reported in bundles before.

    `reason`: "stop" (end of text or a stop string), "length" (`max_tokens`) or "cancelled".
    """

    sequence: int
    reason: str


class SequenceFailed(msgspec.Struct, tag="failed"):
    """The sequence cannot go on (or could not start), and the driver has forgotten it. Its neighbours go on."""

    sequence: int
    error: ErrorInfo


FromDriver = (
    Loading
    | Loaded
    | LoadFailed
    | Admitted
    | Restored
    | Bundle
    | Parked
    | SwappedOut
    | Done
    | Scored
    | Embedded
    | SequenceFailed
)
