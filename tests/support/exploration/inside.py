"""Two parts of the kernel that explorations inspect: its seeded dispatcher, and its synchronisation objects by name.

Used by the world of a seed and by the invariants. It never changes either part.
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
