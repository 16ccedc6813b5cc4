"""A sequence: one generation. It holds all tokens from the first of the prompt on, and turns new ones into text.

`call_lifecycle` makes it, the engine adds tokens. The same tokens always release the same text, so a new incarnation
can replay the tokens of an earlier one. A sequence never knows in which step it runs, or beside which sequences.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from ipc.errors import ContextOverflow, InvalidConstraint
from ipc.syscalls import ChatMessage
from kernel.drivers.protocol import Admit
from kernel.drivers.reply_limit import reply_limit
from kernel.drivers.transformers.attention import Span
from kernel.drivers.transformers.constraint import GrammarCompiler, Matcher
from kernel.drivers.transformers.detokenizer import ByteDetokenizer, Detokenizer
from kernel.drivers.transformers.kv import Slab
from kernel.drivers.transformers.request import EngineRequest
from kernel.drivers.transformers.stops import StopStrings


class TextCodec(Protocol):
    """The part of a tokenizer that the engine and its sequences use; see `tokenizer.Tokenizer`."""

    ends: frozenset[int]
    skipped: dict[int, str]  # the names of the tokens that `decode` leaves out
    sampled: int | None  # if the last logits are those of no token: how many logits are those of tokens
    grammars: GrammarCompiler

    def encode(self, prompt: list[ChatMessage] | str) -> list[int]: ...

    def encode_document(self, text: str) -> list[int]: ...

    def encode_more(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


class EngineLimits(NamedTuple):
    """In tokens: the model's `context`, and the `max_tokens` of calls that set no `max_tokens`."""

    context: int
    max_tokens: int

    def check(self, tokens: int) -> None:
        """Raise `ContextOverflow` if a text of `tokens` tokens is longer than the context."""
        if tokens > self.context:
            raise ContextOverflow(
                f"a text of {tokens} tokens exceeds the model's context of {self.context} tokens; shorten it",
                prompt_tokens=tokens,
                max_tokens=0,
                context=self.context,
            )


class EngineSequence(EngineRequest):
    """A generation. `lease`: how many tokens it may still make before it is parked.

    `matcher` enforces the constraint; it is None if there is no constraint, and until the constraint is compiled.
    `ended`: None until the last token, then the reason of its `Done`. `sampled`: how many logits belong to tokens, if
    not all do. The constructor raises `ContextOverflow` if the prompt and the longest reply exceed the context.
    """

    def __init__(self, admit: Admit, prompt: list[int], codec: TextCodec, limits: EngineLimits) -> None:
        sampling = admit.sampling
        limit = reply_limit(sampling.max_tokens, limits.max_tokens, len(prompt), limits.context)
        super().__init__(admit.sequence, admit.process, list(prompt), len(prompt) + limit.tokens)
        self.sampling = sampling
        self.lease = admit.lease
        self.matcher: Matcher | None = None
        self.expected_think_time = admit.expected_think_time
        self.ended: str | None = None
        self._cut = limit.reason
        self._ends = codec.ends
        self.sampled = codec.sampled
        self._skipped = codec.skipped
        self._detokenizer: Detokenizer | ByteDetokenizer = Detokenizer(codec.decode, prompt)
        self._stops = StopStrings(sampling.stop)

    @property
    def runs(self) -> bool:
        return self.lease > 0

    def constrain(self, matcher: Matcher) -> None:
        """Enforce a constraint from the first generated token on."""
        self.matcher = matcher
        self._detokenizer = ByteDetokenizer(matcher.bytes_of)

    def accept(self, token: int) -> str:
        """Append a generated token and return the text that it releases. Set `ended` if the token is the last."""
        self.tokens.append(token)
        over = token in self._ends
        if over and self.matcher is not None and not self.matcher.may_end():
            raise InvalidConstraint(f"the end token {token} would end a reply that does not fit its constraint yet")
        text = ""
        if not over:
            text = self._stops.push(self._detokenizer.push(token))
            if self.matcher is not None:
                self.matcher.accept(token)
                over = self.matcher.ended
        if (name := self._skipped.get(token)) and self.sampling.stop:
            text += self._stops.push(name, hidden=True)
        if over or len(self.tokens) == self.capacity:
            text += self._stops.push(self._detokenizer.flush())
            text += self._stops.flush()
            self.ended = "stop" if over else self._cut
        if self._stops.found:
            self.ended = "stop"
        return text

    def _span(self, slab: Slab, tokens: list[int]) -> Span:
        whole = slab.length + len(tokens) == len(self.tokens)
        return Span(slab, tokens, logits=int(whole), generated=slab.length >= self.prompt)
