"""File descriptors of the daemon: as many as the system allows, with a reserve that connections may not use.

The daemon raises its limit at start, and connections ask whether a descriptor is still theirs. Without a reserve, many
clients would keep the journal, the swap files, drivers and agents from opening files. This module never opens or closes
a descriptor.
"""

from __future__ import annotations

import resource

MOST = 1_048_576  # descriptors; more would only make programs slow that visit all of them
RESERVE = 128  # descriptors that connections leave free; of a low limit, a third


def raise_limit() -> int:
    """Raise the soft limit of this process to its hard limit, at most to `MOST`. Returns the limit in force.

    Its child processes inherit the limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):  # a container may forbid it
            return soft
        return wanted
    return soft


def is_reserved(descriptor: int) -> bool:
    """Whether `descriptor` belongs to the reserve. The system always assigns the lowest number that is free."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft != resource.RLIM_INFINITY and descriptor >= soft - min(RESERVE, soft // 3)
