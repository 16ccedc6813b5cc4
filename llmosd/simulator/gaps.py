"""The largest gap of service between two owners who both want service. A fair policy bounds this gap.

After Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, section 4.1: over any interval in which two
clients are backlogged, the difference of the services that they received. A simulation reports calls and service to it;
it schedules nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

MOST_OWNERS = 16  # with more, there are too many pairs to compare


class ServiceGap:
    """The largest gap of service between two owners while both are backlogged.

    `weights` is by owner. An owner is backlogged while it has at least one call that has not ended. Service is divided
    by the owner's weight.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = dict(weights)
        self._compares = 2 <= len(weights) <= MOST_OWNERS
        self._calls = dict.fromkeys(weights, 0)
        self._service = dict.fromkeys(weights, 0.0)
        # For each pair of backlogged owners: the smallest and the largest lead of the first over the second.
        self._leads: dict[tuple[str, str], list[float]] = {}
        self._largest = 0.0

    @property
    def largest(self) -> float | None:
        """The largest gap, in tokens over weight; None with one owner or with more than `MOST_OWNERS`."""
        return self._largest if self._compares else None

    def wants(self, owner: str, more: int) -> None:
        """The number of calls of `owner` that have not ended grows by `more`, which is negative if calls ended."""
        if not self._compares:
            return
        calls = self._calls[owner] = self._calls[owner] + more
        if more > 0 and calls == more:
            for other, count in self._calls.items():
                if other != owner and count:
                    lead = self._lead(owner, other)
                    self._leads[min(owner, other), max(owner, other)] = [lead, lead]
        elif not calls:
            self._leads = {pair: lead for pair, lead in self._leads.items() if owner not in pair}

    def served(self, owner: str, tokens: float) -> None:
        """`owner` received a service of `tokens`."""
        if not self._compares:
            return
        self._service[owner] += tokens / self._weights[owner]
        for pair, range_ in self._leads.items():
            if owner in pair:
                lead = self._lead(*pair)
                range_[0], range_[1] = min(range_[0], lead), max(range_[1], lead)
                self._largest = max(self._largest, range_[1] - range_[0])

    def _lead(self, one: str, other: str) -> float:
        first, second = min(one, other), max(one, other)
        return self._service[first] - self._service[second]
