"""The largest gap of service between two owners who both want it: what a fair policy bounds.

After Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, section 4.1: over any interval in which two
clients are backlogged, how far the services they got are apart. Fed by a simulation.
"""

from __future__ import annotations

from collections.abc import Mapping

MOST = 16  # owners; every two of them are compared


class ServiceGap:
    """The largest gap of service between two owners that were both backlogged.

    `weights` is by owner. An owner is backlogged while it has at least one call that is not over; service counts over
    weight.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = dict(weights)
        self._compared = 2 <= len(weights) <= MOST
        self._calls = dict.fromkeys(weights, 0)
        self._service = dict.fromkeys(weights, 0.0)
        self._spans: dict[tuple[str, str], list[float]] = {}  # least and most that the first was ahead of the second
        self._largest = 0.0

    @property
    def largest(self) -> float | None:
        """In tokens over weight; None where there are too few or too many owners to compare."""
        return self._largest if self._compared else None

    def wants(self, owner: str, more: int) -> None:
        """`owner` has so many calls more under way."""
        if not self._compared:
            return
        calls = self._calls[owner] = self._calls[owner] + more
        if more > 0 and calls == more:
            for other, count in self._calls.items():
                if other != owner and count:
                    ahead = self._ahead(owner, other)
                    self._spans[min(owner, other), max(owner, other)] = [ahead, ahead]
        elif not calls:
            self._spans = {pair: span for pair, span in self._spans.items() if owner not in pair}

    def served(self, owner: str, tokens: float) -> None:
        """`owner` got so much service."""
        if not self._compared:
            return
        self._service[owner] += tokens / self._weights[owner]
        for pair, span in self._spans.items():
            if owner in pair:
                ahead = self._ahead(*pair)
                span[0], span[1] = min(span[0], ahead), max(span[1], ahead)
                self._largest = max(self._largest, span[1] - span[0])

    def _ahead(self, one: str, other: str) -> float:
        first, second = min(one, other), max(one, other)
        return self._service[first] - self._service[second]
