"""The KV memory of the simulated device, with one cached prompt per process.

Owned by the device. A prompt stays cached until its process ends or a sequence needs the memory. This module counts
bytes of KV and never stores any.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import takewhile
from math import inf

from ipc.errors import LimitExceeded
from kernel.drivers.protocol import KVUsage
from kernel.drivers.simulated.sequence import SimulatedSequence


class SimulatedMemory:
    """A budget of `budget` bytes, of which each token takes `token_bytes`. `used`: bytes reserved for sequences."""

    def __init__(self, token_bytes: int, budget: float = inf) -> None:
        self.budget = budget
        self.used = 0
        self._token_bytes = token_bytes
        self._cached: OrderedDict[int, list[int]] = OrderedDict()  # the last prompt of each process
        self._cached_tokens = 0  # of all these prompts together
        self._asked = self._hit = self._evicted = 0

    def bytes_for(self, tokens: int) -> int:
        return tokens * self._token_bytes

    def fits(self, sequence: SimulatedSequence) -> bool:
        """Whether `sequence` fits into the whole budget."""
        return self._bytes_needed(sequence) <= self.budget

    def refusal(self, sequence: SimulatedSequence) -> LimitExceeded:
        """The error for a sequence that does not fit into the budget."""
        needed, budget = self._bytes_needed(sequence), self.budget
        return LimitExceeded(
            f"the sequence needs {needed} bytes of KV memory, and {budget} are allowed; lower max_tokens",
            limit="kv_memory",
            maximum=budget,
            wanted=needed,
        )

    def reserve(self, sequence: SimulatedSequence) -> bool:
        """Reserve all memory that `sequence` may need; evict cached prompts if necessary. False if memory is short."""
        needed = self._bytes_needed(sequence)
        while self._cached and self.used + self._cached_bytes() + needed > self.budget:
            self._evicted += self._drop(next(iter(self._cached)))
        if self.used + needed > self.budget:
            return False
        sequence.reserved = needed
        self.used += needed
        self._asked += len(sequence.prompt_ids)
        if not sequence.computed:
            pairs = zip(self._cached.get(sequence.process, ()), sequence.prompt_ids, strict=False)
            sequence.computed = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            self._hit += sequence.computed
        return True

    def free(self, sequence: SimulatedSequence, *, keep: bool) -> None:
        """Free the memory of `sequence`. If `keep` is set and there is room, cache its prompt for its process."""
        self.used -= sequence.reserved or 0
        sequence.reserved = None
        if keep and self.used + self._cached_bytes() + self.bytes_for(len(sequence.prompt_ids)) <= self.budget:
            before = self._cached.get(sequence.process, ())
            self._cached[sequence.process] = sequence.prompt_ids
            self._cached_tokens += len(sequence.prompt_ids) - len(before)

    def forget(self, processes: list[int]) -> None:
        """Drop the cached prompts of `processes`."""
        for process in processes:
            self._drop(process)

    def usage(self, waiting: int) -> KVUsage:
        return KVUsage(self.used, self._cached_bytes(), self._asked, self._hit, self._evicted, waiting)

    def _cached_bytes(self) -> int:
        return self.bytes_for(self._cached_tokens)

    def _drop(self, process: int) -> int:
        """Drop the cached prompt of `process`, if any. Returns its length."""
        dropped = len(self._cached.pop(process, ()))
        self._cached_tokens -= dropped
        return dropped

    def _bytes_needed(self, sequence: SimulatedSequence) -> int:
        return self.bytes_for(len(sequence.prompt_ids) + sequence.max_tokens)
