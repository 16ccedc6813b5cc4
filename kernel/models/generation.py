"""A generation: a sequence that makes tokens.

Created for the system call `Generate`, one for each sample of the call. It stores every token and character, so that it
can continue in another driver process when the first one dies. It never talks to a driver.
"""

from __future__ import annotations

import math
from typing import Protocol

import msgspec

from ipc.errors import DriverFailed
from ipc.messages import Token
from ipc.syscalls import ChatMessage, Completion, Sampling, SequenceInfo
from kernel.core.process import Process, Thread
from kernel.drivers import protocol
from kernel.models.sequence import Sequence
from kernel.policy.group import PROMPT_WEIGHT

CHARACTERS_PER_TOKEN = 4  # of English, roughly


class GenerationSnapshot(msgspec.Struct, frozen=True, array_like=True):
    """The progress of a generation, for the journal. `file`: the file with its KV; empty if there is none.

    `identity`: that of the model which made the tokens; empty if unknown.
    """

    prompt_ids: list[int]
    ids: list[int]
    text: str
    logprobs: list[float]
    file: str = ""
    identity: str = ""


class GenerationRecorder(Protocol):
    """Persists the progress of the generations of one call, so that they continue in the next run of the daemon."""

    def restore_point(self, sample: int) -> GenerationSnapshot | None:
        """The progress that sample number `sample` made in a previous run of the daemon; None if unknown."""

    def set_generations(self, generations: list[Generation]) -> None:
        """The call has created these generations."""

    def swapped_out(self, generation: Generation) -> None:
        """The driver has written the KV of `generation` to `generation.file`."""


class Generation(Sequence):
    """One reply in progress.

    `released`: how many characters the driver has reported; `text` consists of these. The first `restored` of them are
    from a previous run of the daemon. `requested` is the prompt as the call gave it. `call`: the number of this
    sequence among those of its process. `emit`: whether to push its tokens into the stream of the process. `record`:
    the recorder of a durable call, or None. `identity` is that of the model's files which began it. `file` contains its
    KV while it is swapped out. `recomputed` says why its KV had to be computed again, and is empty otherwise. `has_kv`:
    whether the driver is known to have given it KV memory since it was admitted. `submitted`, `started` and `first`:
    when it was queued, first got a slot, and made its first token. `expected_think_time`: seconds from the end of this
    call until its program usually makes the next one.
    """

    __slots__ = (
        "call",
        "emit",
        "expected_think_time",
        "file",
        "finish_reason",
        "first",
        "has_kv",
        "identity",
        "ids",
        "logprobs",
        "prompt_ids",
        "recomputed",
        "record",
        "released",
        "requested",
        "restored",
        "sampling",
        "started",
        "submitted",
        "text",
    )

    def __init__(
        self,
        sequence_id: int,
        process: Process,
        thread: Thread,
        model: str,
        prompt: list[ChatMessage] | str,
        sampling: Sampling,
        emit: bool,
        record: GenerationRecorder | None = None,
    ) -> None:
        super().__init__(sequence_id, process, thread, model)
        self.requested = prompt
        self.sampling = sampling
        self.emit = emit
        self.call = process.generations = process.generations + 1
        self.prompt_ids: list[int] | None = None
        self.ids: list[int] = []
        self.text: list[str] = []
        self.logprobs: list[float] = []
        self.released = self.restored = 0
        self.identity = ""
        self.finish_reason = ""
        self.file = ""
        self.recomputed = ""
        self.has_kv = False
        self.expected_think_time = 0.0
        self.submitted = 0.0
        self.started: float | None = None
        self.first: float | None = None
        self.record = record

    def restore(self, snapshot: GenerationSnapshot) -> None:
        """Continue from `snapshot`. Its tokens count towards the limit of the process.

        The owner and the scheduling group are not charged again: the previous run of the daemon charged them.
        """
        self.prompt_ids, self.ids, self.logprobs = snapshot.prompt_ids, snapshot.ids, snapshot.logprobs
        self.text, self.released, self.restored = [snapshot.text], len(snapshot.text), len(snapshot.text)
        self.file, self.identity = snapshot.file, snapshot.identity
        self.process.prompt_tokens += len(snapshot.prompt_ids)
        self.process.generated_tokens += len(snapshot.ids)

    def snapshot(self) -> GenerationSnapshot:
        """A snapshot of its progress."""
        text = "".join(self.text)
        return GenerationSnapshot(self.prompt_ids or [], self.ids, text, self.logprobs, self.file, self.identity)

    def begin_again(self, why: str) -> None:
        """Discard all tokens and the ids of the prompt, for the reason `why`. The tokens stay charged."""
        self.prompt_ids, self.ids, self.logprobs, self.text = None, [], [], []
        self.released = self.restored = 0
        self.identity = ""
        self.recomputed = why

    @property
    def shown(self) -> int:
        """How many characters a client may have seen."""
        return self.released - self.restored if self.emit and self.process.stream is not None else 0

    def admission(self) -> protocol.Admit:
        self.has_kv = False
        return protocol.Admit(
            self.id,
            self.requested if self.prompt_ids is None else "",
            self.sampling,
            self.lease,
            self.prompt_ids,
            self.ids,
            self.released,
            self.process.pid,
            self.file,
            self.expected_think_time,
        )

    @property
    def length(self) -> int:
        """Tokens so far, including those of the prompt."""
        return len(self.prompt_ids or ()) + len(self.ids)

    @property
    def service(self) -> float:
        """The service that it has received: 1 for each token made, and `PROMPT_WEIGHT` for each prompt token."""
        return len(self.ids) + PROMPT_WEIGHT * len(self.prompt_ids or ())

    @property
    def prompt(self) -> int:
        """Tokens that the driver must prefill before it can make a new one: 0 if the driver has its KV in memory.

        Estimated from the number of characters until a driver has counted the prompt's tokens. A generation without KV
        in memory has its generated tokens prefilled, too.
        """
        if self.in_driver and self.has_kv:
            return 0
        if self.prompt_ids is not None:
            return self.length
        texts = [self.requested] if isinstance(self.requested, str) else [message.content for message in self.requested]
        return sum(map(len, texts)) // CHARACTERS_PER_TOKEN

    @property
    def limit(self) -> int:
        """The most tokens that it may still make; 0 if its call sets no bound."""
        bound = self.sampling.max_tokens
        return 0 if bound is None else max(bound - len(self.ids), 1)

    @property
    def swappable(self) -> bool:
        """Whether the driver holds KV of this generation, which it could write to disk."""
        return self.in_driver and self.has_kv and not self.cancelled

    def extend(self, progress: protocol.Progress) -> None:
        """Add new tokens, and push their text into the stream. Raises `DriverFailed` for a probability that is NaN."""
        if progress.logprobs and any(map(math.isnan, progress.logprobs)):
            raise DriverFailed(f"model {self.model} computed a probability that is NaN; the tokens were discarded")
        self.has_kv = True
        self.ids += progress.ids
        self.logprobs += progress.logprobs
        if text := progress.text:
            self.text.append(text)
            self.released += len(text)
            if self.emit and self.process.stream is not None:
                self.process.stream.push(Token(text, self.process.pid, self.call))

    def completion(self) -> Completion:
        prompt = len(self.prompt_ids or ())
        return Completion("".join(self.text), self.ids, self.logprobs, self.finish_reason, prompt, len(self.ids))

    @property
    def reader_is_behind(self) -> bool:
        stream = self.process.stream if self.emit else None
        return stream is not None and stream.congested

    def info(self, position: int) -> SequenceInfo:
        return msgspec.structs.replace(
            super().info(position),
            prompt_tokens=len(self.prompt_ids or ()),
            generated_tokens=len(self.ids),
            kept="disk" if self.file else "memory" if self.in_driver else "",
            recomputed=self.recomputed,
        )
