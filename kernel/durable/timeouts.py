"""Timeouts of durable processes: they go on while no daemon runs, as sleeps do, and end at a time of day.

Used by the replay, for calls that wait for others. Most are done soon and leave nothing here: the journal gets the end
of a timeout only when the call has waited for `KEPT_AFTER`. What waits for a state of this life alone, such as a lock,
or works for its time, such as a tool, begins anew with all of its time.
"""

from __future__ import annotations

import time

import msgspec

from ipc.syscalls import Call, Receive, SharedWatch, Sleep, Syscall, Wait, WaitForEvent

KEPT_AFTER = 1.0  # seconds
TIMED = (Call, Receive, Wait, SharedWatch, WaitForEvent)


def seconds(call: Sleep) -> float:
    """How long a sleep lasts; what is no time is refused by the call itself."""
    return call.seconds if isinstance(call.seconds, int | float) and call.seconds >= 0 else 0.0


def due(call: Syscall) -> float | None:
    """When the timeout of `call`, which begins now, is over, in seconds since the epoch; None if that is not kept."""
    timeout = call.timeout if isinstance(call, TIMED) else None
    if isinstance(timeout, int | float) and timeout > KEPT_AFTER:
        return time.time() + timeout
    return None


def rest(call: Syscall, due: float) -> Syscall:
    """`call` with the rest of its timeout; if the clock was set back meanwhile, with no more than it asked for."""
    assert isinstance(call, TIMED)
    assert call.timeout is not None
    return msgspec.structs.replace(call, timeout=min(max(due - time.time(), 0.0), call.timeout))
