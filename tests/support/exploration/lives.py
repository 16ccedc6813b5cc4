"""Steps of actors on processes and threads, their own and others'.

Part of `cast.Player`. Links and monitors are written into the ledger; `invariants` checks them when processes end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ipc.syscalls import Child, Kill, Nice, Resume, Suspend, Syscall
from tests.support.agents import make_call
from tests.support.exploration.actor import Actor, Crash

SHARES = {
    "spawn": 6,
    "wait": 4,
    "kill": 4,
    "suspend": 4,
    "resume": 4,
    "nice": 3,
    "start_thread": 8,
    "end_thread": 4,
    "link": 3,
    "monitor": 4,
    "supervise": 2,
    "crash_or_not": 2,
}


class Lives(Actor):
    """Starts, ends, suspends, prioritises and watches processes and threads."""

    async def spawn(self) -> None:
        if self.world.crowded:
            return
        name, link = self.chance.choice([None, None, "a", "b"]), self.world.maybe(0.2)
        child = self.world.child(detach=self.world.maybe(0.3), name=name, link=link)
        pid = await make_call(self.ctx, child)
        if link:
            self.world.ledger.links.add(frozenset((self.ctx.pid, pid)))

    async def wait(self) -> None:
        pid, patience = self.anyone(), self.world.patience()
        async with self.limit(patience):
            value = await self.ctx.wait(pid, patience)
        if value != pid:
            self.world.problem(f"a wait for process {pid} returned {value!r}")

    async def kill(self) -> None:
        await self.to_someone(Kill)

    async def suspend(self) -> None:
        await self.to_someone(Suspend)

    async def resume(self) -> None:
        await self.to_someone(Resume)

    async def nice(self) -> None:
        await self.to_someone(lambda pid, thread: Nice(pid, self.chance.choice([-5, 0, 5]), thread=thread))

    async def to_someone(self, call: Callable[[int, str | None], Syscall]) -> None:
        """Make `call` on a process, or on one of its threads."""
        pid = self.anyone()
        process = self.world.kernel.table.alive.get(pid)
        path = None
        if process is not None and process.threads and self.world.maybe(0.4):
            path = self.chance.choice([thread.path for thread in process.threads])
        await make_call(self.ctx, call(pid, path))

    async def start_thread(self) -> None:
        if self.may_start_threads:
            self.workers.append(self.ctx.start_thread(self.live(self.chance.choice([2, 10]))))

    async def end_thread(self) -> None:
        """Cancel a thread of its own, or wait for it."""
        if not self.workers:
            return
        worker = self.workers.pop(self.chance.randrange(len(self.workers)))
        if self.world.maybe(0.5):
            worker.cancel()
        elif worker is not self.thread:
            await asyncio.wait([worker], timeout=self.world.time())

    async def link(self) -> None:
        pid, links = self.anyone(), self.world.ledger.links
        if self.world.maybe(0.7):
            await self.ctx.link(pid)
            links.add(frozenset((self.ctx.pid, pid)))
        else:
            await self.ctx.unlink(pid)
            links.discard(frozenset((self.ctx.pid, pid)))

    async def monitor(self) -> None:
        ledger = self.world.ledger
        if self.refs and self.world.maybe(0.3):
            ref = self.refs.pop()
            ledger.taken_back.add(ref)
            await self.ctx.demonitor(ref)
        else:
            pid = self.anyone()
            ref = await self.ctx.monitor(pid)
            self.refs.append(ref)
            ledger.monitors[ref] = self.ctx.pid, pid

    async def supervise(self) -> None:
        if self.world.crowded:
            return
        restart: list[Any] = ["permanent", "transient", "temporary"]
        children = [
            Child("ward", {"steps": self.chance.choice([1, 2, 3])}, restart=self.chance.choice(restart))
            for _ in range(self.chance.choice([1, 2]))
        ]
        strategy: Any = self.chance.choice(["one_for_one", "one_for_all", "rest_for_one"])
        await self.ctx.supervise(children, strategy=strategy, max_restarts=2, backoff=0.5)

    async def crash_or_not(self) -> None:
        if self.world.maybe(0.3):
            raise Crash
