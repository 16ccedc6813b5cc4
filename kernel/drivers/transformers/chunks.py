"""How many tokens of each sequence one step takes.

Called by the engine before each step. A pure function: it sees only how many tokens each sequence has yet to run.
"""

from __future__ import annotations


def chunks(pending: list[int], room: int) -> list[int]:
    """The share of each sequence, oldest first. `pending` 1 is a decode, more is a prefill; `room` is at least 2.

    Every decode runs. Prefills share `room` tokens, so that a long prompt holds up no step: the oldest gets up to half,
    so that it does not starve, and the rest goes to those that are soonest done.
    """
    counts = [1 if count == 1 else 0 for count in pending]
    prefills = [index for index, count in enumerate(pending) if count > 1]
    for index in prefills[:1]:
        counts[index] = min(pending[index], room // 2)
        room -= counts[index]
    for index in sorted(prefills, key=pending.__getitem__):
        more = min(pending[index] - counts[index], room)
        counts[index] += more
        room -= more
    return counts
