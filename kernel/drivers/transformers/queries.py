"""Queries: scores of continuations and vectors of texts. Each continuation and each text is a request of its own.

`call_lifecycle` makes the queries, the engine runs their parts beside generations. Only a few parts of a query are in
the engine at a time, so that a query of thousands of texts holds up no other call. A query is answered when the last of
its parts is computed. It never has a lease, and is never parked or swapped out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

import torch

from ipc.errors import DriverFailed
from kernel.drivers.protocol import Embedded, EmbedQuery, Scored, ScoreQuery
from kernel.drivers.transformers.attention import Span
from kernel.drivers.transformers.kv import Slab
from kernel.drivers.transformers.request import EngineRequest

# Another part of a query joins the parts in the engine while they are fewer, and have fewer tokens of their own.
MAX_PARTS = 32
MAX_TOKENS = 1024


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


Part = TypeVar("Part", ScoredContinuation, EmbeddedText)


class QueryParts(Generic[Part]):
    """A query and its `parts`, of `tokens` tokens each besides those that they share. `active`: those in the engine.

    `capacities`: all tokens of each part.
    """

    def __init__(self, identity: int, parts: Iterable[Part], tokens: list[int], capacities: list[int]) -> None:
        self.id = identity
        self.capacities = capacities
        self._parts: Iterator[tuple[int, Part]] = enumerate(parts)
        self._tokens = tokens
        self._started = 0
        self.active: dict[Part, int] = {}  # with their numbers

    def start_parts(self) -> list[Part]:
        """The parts that join now: as many as there is room for, one if there are no others."""
        joining = []
        load = sum(self._tokens[number] for number in self.active.values())
        while self._started < len(self._tokens) and len(self.active) < MAX_PARTS and (load < MAX_TOKENS or not load):
            number, part = next(self._parts)
            self._started += 1
            load += self._tokens[number]
            self.active[part] = number
            joining.append(part)
        return joining

    def finish_part(self, part: Part) -> None:
        """Add the result of `part`, which is computed. Raises `DriverFailed` if the result is not finite."""
        self._add(self.active.pop(part), part)

    @property
    def done(self) -> bool:
        """Whether all parts are computed."""
        return not self.active and self._started == len(self._tokens)

    def answer(self) -> Scored | Embedded:
        """The answer, once all parts are computed."""
        raise NotImplementedError

    def _add(self, number: int, part: Part) -> None:
        raise NotImplementedError


class Scoring(QueryParts[ScoredContinuation]):
    """A `ScoreQuery`."""

    def __init__(self, score: ScoreQuery, prompt: list[int], continuations: list[list[int]]) -> None:
        lengths = list(map(len, continuations))
        parts = (ScoredContinuation(score.sequence, score.process, prompt, tokens) for tokens in continuations)
        super().__init__(score.sequence, parts, lengths, [len(prompt) + length - 1 for length in lengths])
        self._prompt = len(prompt)
        self._logprobs = [0.0] * len(lengths)

    def _add(self, number: int, part: ScoredContinuation) -> None:
        self._logprobs[number] = part.logprob

    def answer(self) -> Scored:
        return Scored(self.id, self._logprobs, self._tokens, self._prompt)


class Embedding(QueryParts[EmbeddedText]):
    """An `EmbedQuery`."""

    def __init__(self, embed: EmbedQuery, texts: list[list[int]]) -> None:
        lengths = list(map(len, texts))
        parts = (EmbeddedText(embed.sequence, embed.process, tokens) for tokens in texts)
        super().__init__(embed.sequence, parts, lengths, lengths)
        self._vectors: list[list[float]] = [[]] * len(texts)

    def _add(self, number: int, part: EmbeddedText) -> None:
        self._vectors[number] = part.vector()

    def answer(self) -> Embedded:
        return Embedded(self.id, self._vectors, sum(self.capacities))
