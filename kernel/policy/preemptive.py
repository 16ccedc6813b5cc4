"""What those policies share that take a slot away before its grant is used: which of those that run goes first.

It looks at those that it moves, and at those whose preemption does not pay yet.
"""

from __future__ import annotations

from kernel.policy.base import Ordered
from kernel.policy.queue_entry import Key, Line, Standing


class Preemptive(Ordered):
    """Who runs keeps the key with which it waited, until it has used its grant. The one with the greatest goes first.

    None goes before it has made up for what its preemption costs, so that two jobs cannot push each other out for ever.
    """

    def __init__(self) -> None:
        super().__init__()
        self._victims = Line()  # those that run and can stop

    def _last(self, standing: Standing) -> Key:
        """Its place among those that run: the least one goes first."""
        return tuple(-part for part in standing.key)

    def _beats(self, first: Standing, running: Standing) -> bool:
        """Whether the first in the line is to have the slot of one that runs."""
        return first.key < running.key

    def _victim(self, first: Standing, now: float) -> Standing | None:
        worst = self._victims.first()
        if worst is None or not self._beats(first, worst):
            return None
        if self._may_go(worst):
            return worst
        return self._victims.best(lambda one: self._may_go(one) and self._beats(first, one))

    def _may_go(self, running: Standing) -> bool:
        return running.settled or (running.grant > 0 and running.job.id in self._spent)

    def _rekey(self, running: Standing, now: float) -> None:
        """One that runs has another place from now on."""
        running.key = self._key(running, now)
        if running.job.preemptible:
            self._victims.remove(running)
            self._victims.push(running, self._last(running))

    def _runs(self, standing: Standing) -> None:
        super()._runs(standing)
        if standing.job.preemptible:
            self._victims.push(standing, self._last(standing))

    def _runs_no_more(self, standing: Standing) -> None:
        super()._runs_no_more(standing)
        if standing.job.preemptible:
            self._victims.remove(standing)
