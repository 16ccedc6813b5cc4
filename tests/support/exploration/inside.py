"""Two parts of the kernel as explorations see them: a dispatcher that plays dice, and the table of locks by name.

Used by the world of a seed and by the invariants. It never changes what it shows.
"""

from __future__ import annotations

from typing import Any, cast

from kernel.kernel import Kernel
from tests.support.exploration.schedule import SeededDispatcher


def dispatcher(kernel: Kernel) -> SeededDispatcher:
    return cast("SeededDispatcher", kernel.dispatcher)


def named(kernel: Kernel) -> dict[str, Any]:
    """Locks, semaphores, conditions, barriers and events, by name."""
    return cast("dict[str, Any]", kernel.synchronisation._named)
