"""A sequence: one call's tokens, from its prompt to its last, with the text they release and what ended them.

Owned by the engine. It knows nothing of steps or neighbours, and a replay of the same tokens gives the same text.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from ipc.errors import ContextOverflow
from ipc.syscalls import ChatMessage, Sampling
from kernel.drivers.transformers.detokenizer import Detokenizer
from kernel.drivers.transformers.kv import Slab
from kernel.drivers.transformers.stops import StopStrings


class Codec(Protocol):
    """What a sequence and the engine need of a tokenizer; see `tokenizer.Tokenizer`."""

    ends: frozenset[int]

    def encode(self, prompt: list[ChatMessage] | str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


class Limits(NamedTuple):
    """In tokens: the model's `context`, and `max_tokens` of a reply to a call that names no bound of its own."""

    context: int
    max_tokens: int


class Sequence:
    """`lease` counts the tokens it may still generate before it is parked; `slab` is None until it has memory.

    `ended` is None while it goes on, then "stop" or "length". Raises `ContextOverflow` if prompt and reply cannot fit.
    """

    def __init__(
        self, identity: int, prompt: list[int], sampling: Sampling, lease: int, codec: Codec, limits: Limits
    ) -> None:
        room = limits.context - len(prompt)
        max_tokens = sampling.max_tokens or max(1, min(room, limits.max_tokens))
        if max_tokens > room:
            raise ContextOverflow(
                f"a prompt of {len(prompt)} tokens and a reply of up to {max_tokens} exceed the model's context of "
                f"{limits.context} tokens; shorten the prompt or lower max_tokens",
                prompt_tokens=len(prompt),
                max_tokens=max_tokens,
                context=limits.context,
            )
        self.id = identity
        self.tokens = list(prompt)
        self.sampling = sampling
        self.lease = lease
        self.slab: Slab | None = None
        self.ended: str | None = None
        self.capacity = len(prompt) + max_tokens
        self._ends = codec.ends
        self._detokenizer = Detokenizer(codec.decode, prompt)
        self._stops = StopStrings(sampling.stop)

    @property
    def pending(self) -> int:
        """Tokens whose keys and values are not computed yet; the next token follows when none is left."""
        return len(self.tokens) - (self.slab.length if self.slab else 0)

    def accept(self, token: int) -> str:
        """Append a generated token; answers the text it releases. Sets `ended` if it was the last."""
        self.tokens.append(token)
        at_end = token in self._ends
        text = "" if at_end else self._stops.push(self._detokenizer.push(token))
        if at_end or len(self.tokens) == self.capacity:
            text += self._stops.push(self._detokenizer.flush())
            text += self._stops.flush()
            self.ended = "stop" if at_end else "length"
        if self._stops.found:
            self.ended = "stop"
        return text
