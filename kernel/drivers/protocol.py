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

# ---- kernel to driver


class Load(msgspec.Struct, tag="load"):
    """First message: load this model. Answered by any number of `Loading`, then `Loaded` or `LoadFailed`.

    `model` is "embedded", a path or a hub name; `cache` a folder the driver may keep converted weights in;
    `max_tokens` bounds a sequence that names no bound of its own.
    """

    model: str
    cache: str
    max_tokens: int
    options: dict[str, Any] = {}


class Admit(msgspec.Struct, tag="admit"):
    """Run a new sequence, at most `lease` generated tokens for now.

    A fresh one carries `prompt` (chat messages, or plain text). One that ran in an earlier incarnation carries
    `prompt_ids`, the `generated` ids so far and `released`, the count of characters already reported as text: the
    driver goes on as if it had never stopped, and reports only what is new.
    """

    sequence: int
    prompt: list[ChatMessage] | str
    sampling: Sampling
    lease: int
    prompt_ids: list[int] | None = None
    generated: list[int] = []
    released: int = 0


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


class Stop(msgspec.Struct, tag="stop"):
    """Exit now."""


ToDriver = Load | Admit | Renew | Revoke | Cancel | Stop

# ---- driver to kernel


class Loading(msgspec.Struct, tag="loading"):
    """Progress of a load: what is being done, and the share of it that is done, if known."""

    stage: str
    fraction: float | None = None


class Loaded(msgspec.Struct, tag="loaded"):
    """The model is ready. `context` in tokens; `facts` are shown to people (dtype, device, attention, ...)."""

    context: int
    facts: dict[str, Any] = {}


class LoadFailed(msgspec.Struct, tag="load_failed"):
    """The model cannot be loaded; the driver exits after this."""

    error: ErrorInfo


class Admitted(msgspec.Struct, tag="admitted"):
    """The prompt is tokenized and fits. Sent once per `Admit` without `prompt_ids`, before its first `Progress`."""

    sequence: int
    prompt_ids: list[int]


class Progress(msgspec.Struct, array_like=True):
    """New tokens of one sequence and the text they release (may be empty: stop strings and multi-byte characters
    are held back until they are decided)."""

    sequence: int
    ids: list[int]
    text: str


class Bundle(msgspec.Struct, tag="bundle"):
    """What one or several steps produced. `steps` and `seconds`: how many steps, and their time in all."""

    progress: list[Progress]
    steps: int
    seconds: float


class Parked(msgspec.Struct, tag="parked"):
    """The sequence is off its slot: its lease is used up or was revoked."""

    sequence: int


class Done(msgspec.Struct, tag="done"):
    """The sequence ended, and the driver has forgotten it; all its tokens were reported in bundles before.

    `reason`: "stop" (end of text or a stop string), "length" (`max_tokens`) or "cancelled".
    """

    sequence: int
    reason: str


class Failed(msgspec.Struct, tag="failed"):
    """The sequence cannot go on (or could not start), and the driver has forgotten it. Its neighbours go on."""

    sequence: int
    error: ErrorInfo


FromDriver = Loading | Loaded | LoadFailed | Admitted | Bundle | Parked | Done | Failed
