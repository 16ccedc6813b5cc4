"""EngineRequest: a row of tokens that runs through the model, and what each kind of request needs of its steps.

Held by `call_lifecycle`, run by the engine. A work knows its tokens and what is made of what the model says about them;
it knows nothing of steps or neighbours.
"""

from __future__ import annotations

from kernel.drivers.transformers.attention import Span
from kernel.drivers.transformers.kv import Slab


class EngineRequest:
    """`prompt`: so many of `tokens` are computed as a prompt, the others as generated ones.

    `reusable` first tokens may come from the prefix cache, `keepable` may go there; `capacity` is the most tokens that
    it will ever hold; `slab` is None until it has memory, `busy` says what else it waits for. `swapped` is the file
    that its state lies in, if it does; `expected_think_time`: seconds until its process
    usually makes its next call, 0 if unknown.
    """

    __slots__ = (
        "busy",
        "capacity",
        "expected_think_time",
        "id",
        "keepable",
        "process",
        "prompt",
        "reusable",
        "slab",
        "swapped",
        "tokens",
    )

    def __init__(self, identity: int, process: int, tokens: list[int], capacity: int) -> None:
        self.id = identity
        self.process = process
        self.tokens = tokens
        self.prompt = self.keepable = len(tokens)
        self.reusable = len(tokens) - 1
        self.capacity = capacity
        self.slab: Slab | None = None
        self.busy = self.swapped = ""
        self.expected_think_time = 0.0

    @property
    def runs(self) -> bool:
        """Whether the kernel lets it run now."""
        return True

    @property
    def done(self) -> int:
        """Tokens whose keys and values are there."""
        return 0 if self.slab is None else self.slab.length

    @property
    def pending(self) -> int:
        """Tokens of one kind, prompt or generated, whose keys and values are to be computed next."""
        done = self.done
        return (self.prompt if done < self.prompt else len(self.tokens)) - done

    def span(self, count: int) -> Span:
        """The next `count` tokens, at most `pending`, as a step takes them."""
        assert self.slab is not None
        start = self.slab.length
        tokens = self.tokens[start : start + count]
        return self._span(self.slab, tokens)

    def _span(self, slab: Slab, tokens: list[int]) -> Span:
        raise NotImplementedError
