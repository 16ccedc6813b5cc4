"""A generation: a sequence that makes text, token by token.

Made for the system call `Generate`, one for each of its samples. It holds every token and every character, so that it
can go on in another driver process when its own dies.
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
from kernel.models.sequence import RUNNING, Sequence
from kernel.policy.group import PROMPT_WEIGHT

CHARACTERS = 4  # a token of English, about


class GenerationSnapshot(msgspec.Struct, frozen=True, array_like=True):
    """How far a generation had come when it was put aside. `file`: where its keys and values are; empty if nowhere."""

    prompt_ids: list[int]
    ids: list[int]
    text: str
    logprobs: list[float]
    file: str = ""


class Record(Protocol):
    """Whoever keeps how far the generations of a call have come, so that they go on in the next life of the daemon."""

    def begun(self, sample: int) -> GenerationSnapshot | None:
        """How far the generation of this number had come in an earlier life."""

    def made(self, generations: list[Generation]) -> None:
        """These are the generations of the call."""

    def swapped_out(self, generation: Generation) -> None:
        """Its state is in its `file` now."""


class Generation(Sequence):
    """How far one reply has come. `released` counts the characters of `text`; `call` numbers it within its process.

    `given` is its prompt as it was asked for. `file` holds its state while no driver does; `recomputed` says why that
    had to be computed anew, if it had; `held`: whether the driver is known to have given it memory since it was
    admitted. `submitted`, `started` and `first`: when it came, got a slot, and had a token for the first time.
    `expected_think_time`: seconds until its process usually makes its next call, once this one is over.
    """

    __slots__ = (
        "call",
        "emit",
        "expected_think_time",
        "file",
        "first",
        "given",
        "has_kv",
        "ids",
        "logprobs",
        "prompt_ids",
        "reason",
        "recomputed",
        "record",
        "released",
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
        record: Record | None = None,
    ) -> None:
        super().__init__(sequence_id, process, thread, model)
        self.given = prompt
        self.sampling = sampling
        self.emit = emit
        self.call = process.generations = process.generations + 1
        self.prompt_ids: list[int] | None = None
        self.ids: list[int] = []
        self.text: list[str] = []
        self.logprobs: list[float] = []
        self.released = 0
        self.reason = ""
        self.file = ""
        self.recomputed = ""
        self.has_kv = False
        self.expected_think_time = 0.0
        self.submitted = 0.0
        self.started: float | None = None
        self.first: float | None = None
        self.record = record

    def restore(self, begun: GenerationSnapshot) -> None:
        """Go on from there. Its tokens are part of what its process has used, and were charged when they were made."""
        self.prompt_ids, self.ids, self.logprobs = begun.prompt_ids, begun.ids, begun.logprobs
        self.text, self.released = [begun.text], len(begun.text)
        self.file = begun.file
        self.process.prompt_tokens += len(begun.prompt_ids)
        self.process.generated_tokens += len(begun.ids)

    def begun(self) -> GenerationSnapshot:
        """How far it has come."""
        return GenerationSnapshot(self.prompt_ids or [], self.ids, "".join(self.text), self.logprobs, self.file)

    def admission(self) -> protocol.Admit:
        self.has_kv = False
        return protocol.Admit(
            self.id,
            self.given if self.prompt_ids is None else "",
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
        """Tokens so far, those of the prompt included."""
        return len(self.prompt_ids or ()) + len(self.ids)

    @property
    def service(self) -> float:
        """What it has got, in tokens made."""
        return len(self.ids) + PROMPT_WEIGHT * len(self.prompt_ids or ())

    @property
    def prompt(self) -> int:
        """Tokens that are to be read before it makes one; by its characters, as long as no driver has counted them."""
        if self.in_driver and self.has_kv:
            return 0
        if self.prompt_ids is not None:
            return self.length
        texts = [self.given] if isinstance(self.given, str) else [message.content for message in self.given]
        return sum(map(len, texts)) // CHARACTERS

    @property
    def limit(self) -> int:
        """Tokens that it may make at most from now on; 0 if its call sets no bound."""
        bound = self.sampling.max_tokens
        return 0 if bound is None else max(bound - len(self.ids), 1)

    @property
    def swappable(self) -> bool:
        """Whether a driver holds a state of it that is worth keeping."""
        return self.in_driver and self.has_kv and not self.cancelled

    def extend(self, progress: protocol.Progress) -> None:
        """Take what a driver made. Raises `DriverFailed` for a probability that is no number."""
        if progress.logprobs and any(map(math.isnan, progress.logprobs)):
            raise DriverFailed(f"model {self.model} computed a probability that is not a number; the tokens are void")
        self.has_kv = True
        self.ids += progress.ids
        self.logprobs += progress.logprobs
        if text := progress.text:
            self.text.append(text)
            self.released += len(text)
            if self.emit and self.process.stream is not None:
                self.process.stream.push(Token(text, self.process.pid, self.call))

    def completion(self) -> Completion:
        return Completion("".join(self.text), self.ids, self.logprobs, self.reason)

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

    def __str__(self) -> str:
        return f"{self.model}: {len(self.ids)} tokens" if self.state == RUNNING else super().__str__()
