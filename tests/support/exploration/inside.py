"""Where the kernel keeps what a test wants to see, and nobody else has to.

Used by the invariants of this folder.
"""

from __future__ import annotations

from typing import Any

from kernel.kernel import Kernel


def dispatcher(kernel: Kernel) -> Any:
    return kernel.ending._dispatcher


def links(kernel: Kernel) -> Any:
    return kernel.ending.on_end[1].__self__  # type: ignore[attr-defined]


def named(kernel: Kernel) -> dict[str, Any]:
    """Locks and their kin, by name."""
    synchronisation: Any = kernel.ending.on_thread_end[-1]
    table: dict[str, Any] = synchronisation.__self__._named
    return table
