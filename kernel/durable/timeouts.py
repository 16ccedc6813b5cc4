"""Timeouts of durable processes: like sleeps, they continue while no daemon runs, and end at a wall-clock time.

Used by the replay, for calls that wait for other processes. Most waits are short and leave no row: the journal gets the
end of a timeout only when the call has waited for `PERSIST_AFTER`. It never applies to a call that waits for state in
memory, such as a lock, or that works, such as a tool: after a restart such a call has its full timeout again.
"""

from __future__ import annotations

import time

import msgspec

from ipc.syscalls import Call, Receive, SharedWatch, Sleep, Syscall, Wait, WaitForEvent

PERSIST_AFTER = 1.0  # seconds
TIMED = (Call, Receive, Wait, SharedWatch, WaitForEvent)


def seconds(call: Sleep) -> float:
    """How long a sleep lasts; 0 for an invalid value, which the call itself refuses."""
    return call.seconds if isinstance(call.seconds, int | float) and call.seconds >= 0 else 0.0


def due(call: Syscall) -> float | None:
    """When the timeout of `call` ends if it begins now, in seconds since the epoch; None if it is not persisted."""
    timeout = call.timeout if isinstance(call, TIMED) else None
    if isinstance(timeout, int | float) and timeout > PERSIST_AFTER:
        return time.time() + timeout
    return None


def with_remaining(call: Syscall, due: float) -> Syscall:
    """`call` with the time left until `due` as its timeout; never more than its own, as the clock may be set back."""
    assert isinstance(call, TIMED)
    assert call.timeout is not None
    return msgspec.structs.replace(call, timeout=min(max(due - time.time(), 0.0), call.timeout))
