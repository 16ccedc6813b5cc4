"""Queries: scores of continuations and vectors of texts. Each continuation and each text is a request of its own.

`call_lifecycle` makes the queries, the engine runs their parts beside generations. A query is answered when the last of
its parts is computed. It never has a lease, and is never parked or swapped out.
"""

from __future__ import annotations

import torch

from ipc.errors import DriverFailed
from kernel.drivers.protocol import Embedded, EmbedQuery, Scored, ScoreQuery
from kernel.drivers.transformers.attention import Span
from kernel.drivers.transformers.kv import Slab
from kernel.drivers.transformers.request import EngineRequest


class ScoredContinuation(EngineRequest):
    """A continuation of a prompt. When all tokens are computed, `logprob` is the logarithm of its probability."""

    __slots__ = ("_expected", "_first_scored", "logprob")

    def __init__(self, identity: int, process: int, prompt: list[int], continuation: list[int]) -> None:
        tokens = prompt + continuation
        super().__init__(identity, process, tokens[:-1], len(tokens) - 1)
        self.logprob = 0.0
        self.reusable = len(prompt) - 1  # the logits after the last token of the prompt are needed
        self.cacheable = len(prompt)
        self._expected = tokens
        self._first_scored = len(prompt) - 1

    def _span(self, slab: Slab, tokens: list[int]) -> Span:
        end = slab.length + len(tokens)
        return Span(slab, tokens, logits=min(len(tokens), max(0, end - self._first_scored)))

    def add_logits(self, first: int, logits: torch.Tensor) -> None:
        """Add logits [positions, vocabulary] from position `first` on. Raises `DriverFailed` at a NaN or infinity."""
        expected = torch.tensor(self._expected[first + 1 : first + 1 + len(logits)], device=logits.device)
        # Row by row: a sum over several rows may add in another order.
        for row, token in zip(logits, expected, strict=True):
            self.logprob += float(row[token] - row.logsumexp(0))
        if not self.logprob > -torch.inf:
            raise DriverFailed(f"the model's logits give a log probability of {self.logprob}: they are not all finite")


class EmbeddedText(EngineRequest):
    """A text and its vector: the mean of its last hidden states, scaled to length 1."""

    __slots__ = ("_sum",)

    def __init__(self, identity: int, process: int, tokens: list[int]) -> None:
        super().__init__(identity, process, tokens, len(tokens))
        self.reusable = self.cacheable = 0  # the states of all its tokens are needed
        self._sum: torch.Tensor | None = None

    def _span(self, slab: Slab, tokens: list[int]) -> Span:
        return Span(slab, tokens, logits=0, hidden=True)

    def add_states(self, states: torch.Tensor) -> None:
        """Add the last hidden states [tokens, size] of the next tokens."""
        # One by one: other requests decide how many tokens a step computes, but must not change the order of the sum.
        for state in states:
            self._sum = state if self._sum is None else self._sum + state

    def vector(self) -> list[float]:
        """The vector of the text. Raises `DriverFailed` if the vector is zero or not finite."""
        assert self._sum is not None
        length = float(self._sum.norm())
        if not 0 < length < torch.inf:
            raise DriverFailed(
                f"the sum of the model's last states has length {length}; it must be positive and finite"
            )
        return [float(number) for number in self._sum / length]


class Scoring:
    """The parts of one `ScoreQuery`."""

    def __init__(self, score: ScoreQuery, prompt: list[int], continuations: list[list[int]]) -> None:
        self._prompt = len(prompt)
        self._id = score.sequence
        self.parts = [ScoredContinuation(score.sequence, score.process, prompt, tokens) for tokens in continuations]

    def answer(self) -> Scored:
        """The answer, once all parts are computed."""
        tokens = [part.capacity + 1 - self._prompt for part in self.parts]
        return Scored(self._id, [part.logprob for part in self.parts], tokens, self._prompt)


class Embedding:
    """The parts of one `EmbedQuery`."""

    def __init__(self, embed: EmbedQuery, texts: list[list[int]]) -> None:
        self._id = embed.sequence
        self.parts = [EmbeddedText(embed.sequence, embed.process, tokens) for tokens in texts]

    def answer(self) -> Embedded:
        """The answer, once all parts are computed. Raises `DriverFailed` if a vector is zero or not finite."""
        count = sum(part.capacity for part in self.parts)
        return Embedded(self._id, [part.vector() for part in self.parts], count)
