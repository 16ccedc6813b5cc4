"""EngineRequest: a series of tokens that runs through the model: a generation, or a part of a query.

`call_lifecycle` holds the requests, the engine runs them. The subclasses in `sequence` and `queries` say which outputs
of the model they need. A request never knows in which step it runs, or beside which requests.
"""

from __future__ import annotations

from kernel.drivers.transformers.attention import Span
from kernel.drivers.transformers.kv import Slab


class EngineRequest:
    """`tokens`, of which the first `prompt` are computed as a prompt, and the others as generated tokens.

    The prefix cache may supply the KV of the first `reusable` tokens and store that of the first `cacheable` tokens.
    `capacity`: the most tokens that the request will ever have. `slab`: its KV memory, or None while it has none.
    `busy`: the reason why it cannot run although the kernel lets it ("compiling", "replaying", "reading",
    "writing"), or "".
    `swapped`: the file with its KV, or "". `expected_think_time`: seconds from the end of its call until its process
    usually makes the next call, 0 if unknown.
    """

    __slots__ = (
        "busy",
        "cacheable",
        "capacity",
        "expected_think_time",
        "id",
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
        self.prompt = self.cacheable = len(tokens)
        self.reusable = len(tokens) - 1
        self.capacity = capacity
        self.slab: Slab | None = None
        self.busy = self.swapped = ""
        self.expected_think_time = 0.0

    @property
    def runs(self) -> bool:
        """Whether the kernel lets the request run now: a generation needs a lease, a part of a query does not."""
        return True

    @property
    def done(self) -> int:
        """How many of the tokens have KV."""
        return 0 if self.slab is None else self.slab.length

    @property
    def pending(self) -> int:
        """How many tokens the next span can hold: the rest of the prompt or, after it, of the generated tokens."""
        done = self.done
        return (self.prompt if done < self.prompt else len(self.tokens)) - done

    def span(self, count: int) -> Span:
        """The next `count` tokens as a span for a step. `count` is at most `pending`."""
        assert self.slab is not None
        start = self.slab.length
        tokens = self.tokens[start : start + count]
        return self._span(self.slab, tokens)

    def _span(self, slab: Slab, tokens: list[int]) -> Span:
        raise NotImplementedError
