"""Weighted fair by virtual token counter: whichever owner has had least for its weight goes first.

Sheng et al., "Fairness in Serving Large Language Models" (VTC), OSDI 2024, algorithm 2 and section 4.3 (weights). Each
owner has a counter of the tokens it was served, those of prompts at their own price, over its weight. An owner that
comes back with nothing in the line is lifted to the least counter there: who was idle has saved nothing up.

The bound. Let all calls run on B slots, no prompt cost more than P and no grant be longer than Q tokens, and let f and
g have calls in the line all the time. f gets a grant only while c(f) <= c(g); what it holds then can take it at most
B (P + Q) / w(f) further; and c(g) never falls. So c(f) - c(g) stays below that, and over any interval
|S(f)/w(f) - S(g)/w(g)| <= 2 B (P + Q) / min(w(f), w(g)), where S is the service. Without preemption, as in the paper's
theorem 4.4, Q is the length of the longest reply; here it is a quantum.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping

from kernel.policy.base import OrderedPolicy
from kernel.policy.policy import Job
from kernel.policy.queue_entry import Key, LazyHeap, QueueEntry

KEPT = 1024  # owners that are remembered in any case


class _Owner:
    """An owner, and its calls that wait.

    `counter` is its service over its `weight`, `turn` when it last got a slot. `rank` only grows; the heap of the
    owners that have calls in their `line` holds each with the rank it had when it was put there.
    """

    __slots__ = ("counter", "line", "listed", "running", "turn", "weight")

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.counter = 0.0
        self.turn = 0
        self.running = 0
        self.line = LazyHeap()
        self.listed = False

    @property
    def rank(self) -> tuple[float, int]:
        return self.counter, self.turn


class WeightedFair(OrderedPolicy):
    """`quantum` in tokens; `weights` by owner, else that of the program; `prompt_weight`: price of a prompt's token.

    Within an owner the first to come goes first. A slot changes its owner only at the end of a grant.
    """

    kind = "fair"

    def __init__(self, quantum: int, weights: Mapping[str, float], prompt_weight: float) -> None:
        super().__init__()
        self._tokens = quantum
        self._weights = weights
        self._price = prompt_weight
        self._owners: dict[str, _Owner] = {}
        self._heap: list[tuple[tuple[float, int], int, _Owner]] = []
        self._entries = 0
        self._left: _Owner | None = None  # whose last call left the line last
        self._prune_at = KEPT

    def arrive(self, job: Job, now: float) -> None:
        if job.id not in self._waiting and job.id not in self._running:
            owner = self._owner(job)
            if not len(owner.line):
                poorest = self._poorest() or self._left
                owner.counter = max(owner.counter, poorest.counter if poorest else 0.0)
            self._wait(QueueEntry(job, now), now)

    def charge_prompt(self, job: Job, tokens: int, now: float) -> None:
        self._charge(job, self._price * tokens)

    def charge_tokens(self, job: Job, tokens: int, now: float) -> None:
        super().charge_tokens(job, tokens, now)
        self._charge(job, tokens)

    def line(self) -> list[Job]:
        owners = sorted((owner for owner in self._owners.values() if len(owner.line)), key=lambda owner: owner.rank)
        return [entry.job for owner in owners for _, _, entry in owner.line.listed()]

    # ---- what it says

    def _key(self, entry: QueueEntry, now: float) -> Key:
        return (entry.job.id,)

    def _quantum(self, entry: QueueEntry) -> int:
        return self._tokens

    def _first(self, now: float) -> QueueEntry | None:
        owner = self._poorest()
        return None if owner is None else owner.line.first()

    def _victim(self, first: QueueEntry, now: float) -> QueueEntry | None:
        """Of those that have used their grants, one of the owner who has had most, if that is more."""
        spent = [entry for entry in self._spent.values() if entry.grant]
        richest = max(spent, key=lambda entry: self._owner(entry.job).counter, default=None)
        if richest is None or self._owner(richest.job).counter <= self._owner(first.job).counter:
            return None
        return richest

    # ---- owners

    def _owner(self, job: Job) -> _Owner:
        name = job.group.owner
        owner = self._owners.get(name)
        if owner is None:
            if len(self._owners) >= self._prune_at:
                self._prune()
            owner = self._owners[name] = _Owner(self._weights.get(name, job.group.weight))
        return owner

    def _charge(self, job: Job, cost: float) -> None:
        if job.id in self._running or job.id in self._waiting:
            owner = self._owner(job)
            owner.counter += cost / owner.weight

    def _poorest(self) -> _Owner | None:
        """Of those with calls in the line, who has had least; of equals, who got a slot longest ago."""
        heap = self._heap
        while heap:
            rank, entry, owner = heap[0]
            if not len(owner.line):
                owner.listed = False
                heapq.heappop(heap)
            elif rank != owner.rank:
                heapq.heapreplace(heap, (owner.rank, entry, owner))
            else:
                return owner
        return None

    def _prune(self) -> None:
        """Forget those who are gone, and have no more than whoever comes new would be lifted to."""
        poorest = self._poorest() or self._left
        floor = poorest.counter if poorest else 0.0
        self._owners = {
            name: owner
            for name, owner in self._owners.items()
            if owner.running or len(owner.line) or owner.counter > floor
        }
        self._prune_at = max(KEPT, 2 * len(self._owners))

    # ---- moves

    def _wait(self, entry: QueueEntry, now: float) -> None:
        entry.key = self._key(entry, now)
        self._waiting[entry.job.id] = entry
        owner = self._owner(entry.job)
        owner.line.push(entry, entry.key)
        if not owner.listed:
            owner.listed = True
            self._entries += 1
            heapq.heappush(self._heap, (owner.rank, self._entries, owner))

    def _unwait(self, entry: QueueEntry) -> None:
        del self._waiting[entry.job.id]
        owner = self._owner(entry.job)
        owner.line.remove(entry)
        if not len(owner.line):
            self._left = owner

    def _runs(self, entry: QueueEntry) -> None:
        super()._runs(entry)
        owner = self._owner(entry.job)
        owner.running += 1
        owner.turn = self._turn()

    def _runs_no_more(self, entry: QueueEntry) -> None:
        super()._runs_no_more(entry)
        self._owner(entry.job).running -= 1
