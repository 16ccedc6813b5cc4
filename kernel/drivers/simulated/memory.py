"""The keys and values of the simulated device: bytes that are counted and nowhere kept, and prefixes by process.

Owned by the device. A prompt stays cached for its process until that ends or the room is needed.
"""

from __future__ import annotations

from itertools import takewhile
from math import inf

from ipc.errors import LimitExceeded
from kernel.drivers.protocol import KVUsage
from kernel.drivers.simulated.sequence import SimulatedSequence


class SimulatedMemory:
    """`budget` bytes of which each token takes `token_bytes`."""

    def __init__(self, token_bytes: int, budget: float = inf) -> None:
        self.budget = budget
        self.used = 0
        self._token_bytes = token_bytes
        self._cached: dict[int, list[int]] = {}  # the last prompt of each process
        self._asked = self._hit = self._evicted = 0

    def bytes_for(self, tokens: int) -> int:
        return tokens * self._token_bytes

    def fits(self, sequence: SimulatedSequence) -> bool:
        """Whether `sequence` could be held if nothing else were."""
        return self._need(sequence) <= self.budget

    def refusal(self, sequence: SimulatedSequence) -> LimitExceeded:
        """What is said of one that does not fit."""
        need, budget = self._need(sequence), self.budget
        return LimitExceeded(
            f"the sequence needs {need} bytes of keys and values, and {budget} are allowed; lower max_tokens",
            limit="kv_memory",
            maximum=budget,
            wanted=need,
        )

    def reserve(self, sequence: SimulatedSequence) -> bool:
        """Reserve what `sequence` may ever need, giving up cached prefixes if need be; whether that went."""
        need = self._need(sequence)
        while self._cached and self.used + self._cached_bytes() + need > self.budget:
            self._evicted += len(self._cached.pop(next(iter(self._cached))))
        if self.used + need > self.budget:
            return False
        sequence.reserved = need
        self.used += need
        self._asked += len(sequence.prompt_ids)
        if not sequence.computed:
            pairs = zip(self._cached.get(sequence.process, ()), sequence.prompt_ids, strict=False)
            sequence.computed = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            self._hit += sequence.computed
        return True

    def free(self, sequence: SimulatedSequence, *, keep: bool) -> None:
        """Take back what `sequence` reserved, and `keep` its prompt for the next of its process, if there is room."""
        self.used -= sequence.reserved or 0
        sequence.reserved = None
        if keep and self.used + self._cached_bytes() + self.bytes_for(len(sequence.prompt_ids)) <= self.budget:
            self._cached[sequence.process] = sequence.prompt_ids

    def forget(self, processes: list[int]) -> None:
        """Keep nothing for these processes."""
        for process in processes:
            self._cached.pop(process, None)

    def usage(self, waiting: int) -> KVUsage:
        return KVUsage(self.used, self._cached_bytes(), self._asked, self._hit, self._evicted, waiting)

    def _cached_bytes(self) -> int:
        return self.bytes_for(sum(map(len, self._cached.values())))

    def _need(self, sequence: SimulatedSequence) -> int:
        return self.bytes_for(len(sequence.prompt_ids) + sequence.max_tokens)
