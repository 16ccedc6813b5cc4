"""What goes into the journal and what comes out of it. Data only; the loop and the journal's thread hand it over."""

from __future__ import annotations

import msgspec


class Accepted(msgspec.Struct):
    """A task that is to be kept. `call` is the msgpack of its `Submit`; `id` is 0 until the journal gives it one.

    `pid` is not 0 if its first process is durable, and `version` then that of its code.
    """

    program: str
    owner: str
    key: str | None
    call: bytes
    submitted: float
    id: int = 0
    attempt: int = 1
    pid: int = 0
    version: str = ""


class End(msgspec.Struct, frozen=True):
    """How a task ended. `outcome` is the msgpack of its last event."""

    id: int
    ended: float
    reason: str
    error: str
    outcome: bytes


class Kept(msgspec.Struct, frozen=True):
    """A task as it stands in the journal. `ended` is None, and `outcome` empty, until it has ended."""

    id: int
    program: str
    owner: str
    submitted: float
    attempt: int
    ended: float | None
    reason: str
    error: str
    outcome: bytes
