"""Timeouts of durable processes: like sleeps, they continue while no daemon runs, and end at a wall-clock time.

Used by the replay, for calls that wait for other processes. Most waits are short and leave no row: the end of a timeout
is persisted when the call has waited for `PERSIST_AFTER`. A call that is repeated with no time left still takes a
message that has arrived. The timeout of a wait for state in memory, such as a lock, or for work, such as a tool,
never continues: after a restart such a call has its full timeout again.
"""

from __future__ import annotations

import time

import msgspec

from ipc.syscalls import Call, Receive, SharedWatch, Sleep, Syscall, Wait, WaitForEvent

PERSIST_AFTER = 1.0  # seconds of a wait after which the end of its timeout is persisted
TIMED = (Call, Receive, Wait, SharedWatch, WaitForEvent)


def seconds(call: Sleep) -> float:
    """The length of a sleep; 0 for an invalid value, which the handler of the call refuses."""
    return call.seconds if isinstance(call.seconds, int | float) and call.seconds >= 0 else 0.0


def due(call: Syscall) -> float | None:
    """The time at which a timeout that begins now ends, in seconds since the epoch; None if it is not persisted."""
    timeout = call.timeout if isinstance(call, TIMED) else None
    if isinstance(timeout, int | float) and timeout > PERSIST_AFTER:
        return time.time() + timeout
    return None


def with_remaining(call: Syscall, due: float) -> Syscall:
    """`call` with the time until `due` as its timeout, which never grows, even if the clock was set back."""
    assert isinstance(call, TIMED)
    assert call.timeout is not None
    return msgspec.structs.replace(call, timeout=min(max(due - time.time(), 0.0), call.timeout))
