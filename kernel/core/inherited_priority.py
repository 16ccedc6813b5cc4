"""The priorities that the callers of a process lend to it while they wait for its replies.

A process has one such table while a caller is more urgent than its own threads (`PendingCalls.inherited`).
`kernel.dispatch.priority_inheritance` fills it; sequences read it. It never looks at processes or threads itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kernel.lib.validation import LOWEST

NOTHING = LOWEST - 1  # lent by a caller that is not more urgent, and the highest of an empty table


class InheritedPriority:
    """The priority that each caller lends. `highest` is the highest of them; a change of it costs a constant time."""

    __slots__ = ("_callers", "_lent", "highest")

    def __init__(self) -> None:
        self.highest = NOTHING
        self._lent: dict[Any, int] = {}  # by caller, which is a thread
        self._callers: dict[int, dict[Any, None]] = {}  # by what they lend; none is empty

    def __len__(self) -> int:
        return len(self._lent)

    def lent_by(self, caller: Any) -> int:
        """The priority that `caller` lends; `NOTHING` if it is not in the table."""
        return self._lent.get(caller, NOTHING)

    def who_lend(self, priority: int) -> Iterable[Any]:
        """The callers that lend exactly `priority`."""
        return self._callers.get(priority, ())

    def set(self, caller: Any, priority: int) -> None:
        """`caller` now lends `priority`; `NOTHING` removes it from the table."""
        before = self._lent.pop(caller, NOTHING)
        if before != NOTHING:
            callers = self._callers[before]
            del callers[caller]
            if not callers:
                del self._callers[before]
        if priority != NOTHING:
            self._lent[caller] = priority
            self._callers.setdefault(priority, {})[caller] = None
        self.highest = max(self._callers, default=NOTHING)
