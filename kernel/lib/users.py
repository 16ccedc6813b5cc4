"""The names of Unix users.

Connections use it to name the owner of a local client. A lookup may read files or ask a server, so the daemon looks up
its own user before it serves; after that, a name comes from memory.
"""

from __future__ import annotations

import functools
import pwd


@functools.lru_cache(maxsize=64)
def user_name(uid: int) -> str:
    """The name of user `uid`, or `uid-1000` if user 1000 has no name."""
    try:
        return pwd.getpwuid(uid).pw_name or f"uid-{uid}"
    except (KeyError, OverflowError):
        return f"uid-{uid}"
