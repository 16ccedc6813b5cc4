"""Limits: how much a process or an owner may use. Part of `Spawn`, and of the daemon's settings."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from ipc.syscalls.base import Count, Seconds


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Bounds; None is no bound. What goes over is `LimitExceeded`, named and counted.

    A call that goes over fails: `tokens` (read and written by models), `children` (alive at once), `memory_keys` and
    `memory_bytes` (private memory). Messages over the length of the `mailbox` wait or fail as in any full one. A
    process that goes over ends, with reason "limit": `cpu_seconds`, `wall_seconds`.
    """

    tokens: Count | None = None
    cpu_seconds: Seconds | None = None
    wall_seconds: Seconds | None = None
    children: Count | None = None
    mailbox: Annotated[int, Meta(ge=1)] | None = None
    memory_keys: Count | None = None
    memory_bytes: Count | None = None
