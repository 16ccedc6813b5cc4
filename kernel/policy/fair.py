"""Weighted fairness by virtual token counters: the owner with the least service for its weight goes first.

Sheng et al., "Fairness in Serving Large Language Models" (VTC), OSDI 2024, algorithm 2 and section 4.3 (weights). Each
owner has a counter: the service of the owner in tokens, divided by its weight; prompt tokens have a price of their own.
When an owner without waiting calls makes a call, its counter is raised to the lowest counter among the owners that
wait, so that idle time earns no credit.

The bound. Let all calls run on B slots, let no prompt cost more than P and no grant exceed Q tokens, and let owners f
and g have calls waiting all the time. Let c be the counter, w the weight and S the service of an owner. f gets
a grant only while c(f) <= c(g). The grants that f holds at that time can raise c(f) by at most B (P + Q) / w(f), and
c(g) never falls. So c(f) - c(g) never exceeds B (P + Q) / w(f), and over any interval
|S(f)/w(f) - S(g)/w(g)| <= 2 B (P + Q) / min(w(f), w(g)). Without preemption, as in the paper's theorem 4.4, Q is the
length of the longest reply; here Q is a quantum.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping

from kernel.policy.base import OrderedPolicy
from kernel.policy.policy import Job
from kernel.policy.queue_entry import Key, LazyHeap, QueueEntry

MIN_REMEMBERED = 1024  # owners; while there are fewer, no owner is forgotten


class _Owner:
    """An owner. `line`: its waiting calls. `running`: the number of its running calls.

    `counter`: its service divided by its `weight`. `last_start`: the number of the last start of a call of this owner;
    all starts of all owners are numbered. `rank` never decreases. The heap of owners with waiting calls holds an owner
    under the rank that it had when it was added; `in_heap` says whether the owner is in that heap.
    """

    __slots__ = ("counter", "in_heap", "last_start", "line", "running", "weight")

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.counter = 0.0
        self.last_start = 0
        self.running = 0
        self.line = LazyHeap()
        self.in_heap = False

    @property
    def rank(self) -> tuple[float, int]:
        return self.counter, self.last_start


class WeightedFair(OrderedPolicy):
    """`quantum` and `prompt_weight`, the price of a prompt token, in tokens; `weights` by owner.

    An owner that `weights` does not name has the weight of its scheduling group.
    The calls of one owner run in order of arrival. A slot passes to another owner only at the end of a grant.
    """

    kind = "fair"

    def __init__(self, quantum: int, weights: Mapping[str, float], prompt_weight: float) -> None:
        super().__init__()
        self._tokens = quantum
        self._weights = weights
        self._prompt_weight = prompt_weight
        self._owners: dict[str, _Owner] = {}
        self._heap: list[tuple[tuple[float, int], int, _Owner]] = []
        self._entries = 0
        self._last_emptied: _Owner | None = None  # the owner that most recently ran out of waiting calls
        self._prune_at = MIN_REMEMBERED

    def arrive(self, job: Job, now: float) -> None:
        if job.id not in self._waiting and job.id not in self._running:
            owner = self._owner(job)
            if not len(owner.line):
                owner.counter = max(owner.counter, self._lowest_counter())
            self._add_waiting(QueueEntry(job, now), now)

    def charge_prompt(self, job: Job, tokens: int, now: float) -> None:
        self._charge(job, self._prompt_weight * tokens)

    def charge_tokens(self, job: Job, tokens: int, now: float) -> None:
        super().charge_tokens(job, tokens, now)
        self._charge(job, tokens)

    def queue(self) -> list[Job]:
        owners = sorted((owner for owner in self._owners.values() if len(owner.line)), key=lambda owner: owner.rank)
        return [entry.job for owner in owners for _, _, entry in owner.line.in_order()]

    # ---- the order

    def _key(self, entry: QueueEntry, now: float) -> Key:
        return (entry.job.id,)

    def _quantum(self, entry: QueueEntry) -> int:
        return self._tokens

    def _first(self, now: float) -> QueueEntry | None:
        owner = self._least_served()
        return None if owner is None else owner.line.first()

    def _rule(self, entry: QueueEntry, now: float) -> str:
        most = max((self._owner(one.job) for one in self._running.values()), key=lambda one: one.counter, default=None)
        others = "" if most is None else f"; on the slots, the most is {most.counter:.0f}"
        return (
            "prefers the owner with the least service for its weight, which is "
            f"{self._owner(entry.job).counter:.0f} tokens for the owner of this call{others}"
        )

    def _yields_to(self, waiting: QueueEntry, running: QueueEntry) -> bool:
        return self._owner(running.job).counter > self._owner(waiting.job).counter

    def _victim(self, first: QueueEntry, now: float) -> QueueEntry | None:
        """Of the running jobs that have used their grants, one whose owner has the highest counter.

        None if that counter is not above the counter of the owner of `first`.
        """
        used_up = [entry for entry in self._needs_grant.values() if entry.grant]
        victim = max(used_up, key=lambda entry: self._owner(entry.job).counter, default=None)
        if victim is None or self._owner(victim.job).counter <= self._owner(first.job).counter:
            return None
        return victim

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

    def _least_served(self) -> _Owner | None:
        """The owner with the lowest counter among those with waiting calls. Of equals, the one served longest ago."""
        heap = self._heap
        while heap:
            rank, entry, owner = heap[0]
            if not len(owner.line):
                owner.in_heap = False
                heapq.heappop(heap)
            elif rank != owner.rank:
                heapq.heapreplace(heap, (owner.rank, entry, owner))
            else:
                return owner
        return None

    def _lowest_counter(self) -> float:
        """The counter to which an owner is raised when its first call begins to wait."""
        owner = self._least_served() or self._last_emptied
        return owner.counter if owner else 0.0

    def _prune(self) -> None:
        """Forget idle owners whose counters are no higher than the counter with which a new owner would start."""
        floor = self._lowest_counter()
        self._owners = {
            name: owner
            for name, owner in self._owners.items()
            if owner.running or len(owner.line) or owner.counter > floor
        }
        self._prune_at = max(MIN_REMEMBERED, 2 * len(self._owners))

    # ---- moves

    def _add_waiting(self, entry: QueueEntry, now: float) -> None:
        entry.key = self._key(entry, now)
        self._waiting[entry.job.id] = entry
        owner = self._owner(entry.job)
        owner.line.push(entry, entry.key)
        if not owner.in_heap:
            owner.in_heap = True
            self._entries += 1
            heapq.heappush(self._heap, (owner.rank, self._entries, owner))

    def _remove_waiting(self, entry: QueueEntry) -> None:
        del self._waiting[entry.job.id]
        owner = self._owner(entry.job)
        owner.line.remove(entry)
        if not len(owner.line):
            self._last_emptied = owner

    def _add_running(self, entry: QueueEntry) -> None:
        super()._add_running(entry)
        owner = self._owner(entry.job)
        owner.running += 1
        owner.last_start = self._ticket()

    def _remove_running(self, entry: QueueEntry) -> None:
        super()._remove_running(entry)
        self._owner(entry.job).running -= 1
