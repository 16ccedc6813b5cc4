"""Calls that are no generations: scores of continuations and vectors of texts, each a work of its own.

Made by `call_lifecycle`, run by the engine beside generations. A call is answered when the last of its parts is
through.
"""

from __future__ import annotations

import torch

from ipc.errors import DriverFailed
from kernel.drivers.protocol import Embed, Embedded, Score, Scored
from kernel.drivers.transformers.attention import Span
from kernel.drivers.transformers.kv import Slab
from kernel.drivers.transformers.request import EngineRequest


class ScoredContinuation(EngineRequest):
    """A continuation of a prompt whose probability is asked for: `logprob`, when it is through."""

    __slots__ = ("_asked_from", "_expected", "logprob")

    def __init__(self, identity: int, process: int, prompt: list[int], continuation: list[int]) -> None:
        tokens = prompt + continuation
        super().__init__(identity, process, tokens[:-1], len(tokens) - 1)
        self.logprob = 0.0
        self.reusable = len(prompt) - 1  # the logits after the last token of the prompt are needed
        self.keepable = len(prompt)
        self._expected = tokens
        self._asked_from = len(prompt) - 1

    def _span(self, slab: Slab, tokens: list[int]) -> Span:
        end = slab.length + len(tokens)
        return Span(slab, tokens, logits=min(len(tokens), max(0, end - self._asked_from)))

    def take(self, first: int, logits: torch.Tensor) -> None:
        """Logits [positions, vocabulary] from position `first` on. Raises `DriverFailed` if they are no numbers."""
        expected = torch.tensor(self._expected[first + 1 : first + 1 + len(logits)], device=logits.device)
        for row, token in zip(logits, expected, strict=True):  # row by row: sums over several may take another order
            self.logprob += float(row[token] - row.logsumexp(0))
        if not self.logprob > -torch.inf:
            raise DriverFailed("the model's logits are no numbers")


class EmbeddedText(EngineRequest):
    """A text whose vector is asked for: the mean of its last states, of length 1."""

    __slots__ = ("_sum",)

    def __init__(self, identity: int, process: int, tokens: list[int]) -> None:
        super().__init__(identity, process, tokens, len(tokens))
        self.reusable = self.keepable = 0  # the states of all its tokens are needed
        self._sum: torch.Tensor | None = None

    def _span(self, slab: Slab, tokens: list[int]) -> Span:
        return Span(slab, tokens, logits=0, hidden=True)

    def take(self, states: torch.Tensor) -> None:
        """The last states [tokens, size] of some tokens more."""
        for state in states:  # one by one: what comes in a step depends on others, and the sum must not
            self._sum = state if self._sum is None else self._sum + state

    def vector(self) -> list[float]:
        """Raises `DriverFailed` if there is none."""
        assert self._sum is not None
        length = float(self._sum.norm())
        if not 0 < length < torch.inf:
            raise DriverFailed("the model's states are no numbers")
        return [float(number) for number in self._sum / length]


class Scoring:
    """The parts of one `Score`."""

    def __init__(self, score: Score, prompt: list[int], continuations: list[list[int]]) -> None:
        self._prompt = len(prompt)
        self._id = score.sequence
        self.parts = [ScoredContinuation(score.sequence, score.process, prompt, tokens) for tokens in continuations]

    def answer(self) -> Scored:
        """When all parts are through."""
        tokens = [part.capacity + 1 - self._prompt for part in self.parts]
        return Scored(self._id, [part.logprob for part in self.parts], tokens, self._prompt)


class Embedding:
    """The parts of one `Embed`."""

    def __init__(self, embed: Embed, texts: list[list[int]]) -> None:
        self._id = embed.sequence
        self.parts = [EmbeddedText(embed.sequence, embed.process, tokens) for tokens in texts]

    def answer(self) -> Embedded:
        """When all parts are through. Raises `DriverFailed`."""
        count = sum(part.capacity for part in self.parts)
        return Embedded(self._id, [part.vector() for part in self.parts], count)
