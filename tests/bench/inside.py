"""A kernel in the loop of a bench, without daemon and socket: agents cost the same there as in a daemon."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from types import CoroutineType
from typing import Any, Self

import structlog

from ipc.codec import reveal
from ipc.errors import from_wire
from ipc.syscalls import ExitStatus, Spawn, Syscall, Wait
from tests.support.boot import boot
from tests.support.paths import PROGRAMS


class Inside:
    """The kernel, and a client of it."""

    async def __aenter__(self) -> Self:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
        system = boot(Path(tempfile.gettempdir()) / "llmosd-bench", agents=[PROGRAMS])
        self.kernel, self.client = system.kernel, system.client
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kernel.drain(0)
        await self.kernel.close()

    async def call(self, call: Syscall) -> Any:
        """Make a system call in the name of the client."""
        answer = self.kernel.gate.enter(self.client, call)
        return await self.kernel.threads.start_thread(self.client, answer) if type(answer) is CoroutineType else answer

    async def spawn(self, program: str, /, mailbox: int | None = None, **args: Any) -> int:
        """Start a program; return its pid. `mailbox`: capacity of its mailbox, in messages."""
        pid: int = await self.call(Spawn(program, args))
        if mailbox is not None:
            self.kernel.table.get(pid).open_mailbox().capacity = mailbox
        return pid

    async def result(self, pid: int) -> Any:
        status: ExitStatus = await self.call(Wait(pid))
        if status.error is not None:
            raise from_wire(status.error)
        return reveal(status.value)

    async def run(self, program: str, /, **args: Any) -> Any:
        return await self.result(await self.spawn(program, **args))
