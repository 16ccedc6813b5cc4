"""Messages to a mailbox, and threads that send to it and receive from it by system calls.

Used by the tests of the mailbox, which set `system.target` to its process. It never reads the mailbox itself.
"""

from __future__ import annotations

from typing import Any, cast

from ipc.messages import Message
from ipc.syscalls import ANY_MESSAGE, Receive, Send
from kernel.core.process import Thread


def message(number: int, priority: int = 0) -> Message:
    return Message(number, "", 1, 2, priority, 0, None, None)


def send(system: Any, body: Any, **options: Any) -> Thread:
    """A thread that sends `body` to the target."""

    async def sending() -> int:
        identity: int = await system.kernel.gate.call(system.client, Send(system.target.pid, body, **options))
        return identity

    return cast("Thread", system.thread(sending()))


def receive(system: Any, timeout: float | None = None) -> Thread:
    async def receiving() -> Any:
        return (await system.kernel.gate.call(system.target, Receive(timeout))).body

    return cast("Thread", system.thread(receiving(), system.target))


def listen(system: Any) -> Thread:
    """A thread that receives with the call of an agent's plain `receive`."""

    async def listening() -> Any:
        return (await system.kernel.gate.call(system.target, ANY_MESSAGE)).body

    return cast("Thread", system.thread(listening(), system.target))
