"""A trial by chaos: everything happens at the same time to the agents of a real daemon, and nothing is left of them.

A seed decides the actions; their timing is up to the machine. The long form, in `make soak`, has a thousand agents.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time

import psutil
import pytest

from ipc.syscalls import Limits, Locks, Names
from kernel.core.process_table import REMEMBERED
from llmosd import AsyncClient, LlmosError, MailboxFull, TimedOut

SEED = 20261207
PATIENCE = 30.0  # seconds for any answer at all
AT_ONCE = 8  # things that are done at the same time
MAILBOX = 100  # messages: small, so that many mailboxes are full

AGENTS = '''
from llmosd import Context, agent

@agent
async def server(ctx: Context):
    """Answers most calls immediately, some late, some never."""
    while True:
        message = await ctx.receive()
        if message.correlation and message.id % 7:
            await ctx.sleep(0.1 if message.id % 5 == 0 else 0.0)
            await ctx.reply(message, message.body)

@agent
async def deaf(ctx: Context):
    """Never reads its mailbox."""
    await ctx.sleep(3600)

@agent
async def writer(ctx: Context):
    """Generates without end, and emits the length of each text."""
    while True:
        await ctx.emit(len(await ctx.generate("tell me", max_tokens=60)))
        ctx.log("once more")

@agent
async def holder(ctx: Context):
    """Takes its turn with a lock and a semaphore."""
    while True:
        async with ctx.lock(f"lock {ctx.pid % 5}"):
            await ctx.sleep(0.01)
        async with ctx.semaphore("pool", 3):
            await ctx.sleep(0.01)

@agent
async def family(ctx: Context):
    """Supervises children that fail, and waits for one that does not."""
    await ctx.supervise(["brief", "brief"], max_restarts=1000, within=1.0, backoff=0.05)

@agent
async def brief(ctx: Context):
    await ctx.sleep(0.2)
    raise ValueError("as intended")

@agent
async def talker(ctx: Context, to: int):
    """Calls its peer, and gives up soon."""
    await ctx.monitor(to)
    while True:
        try:
            await ctx.call(to, "are you there?", timeout=0.05)
        except Exception as error:
            ctx.log("no answer", why=type(error).__name__)
            await ctx.sleep(0.05)
'''


class Chaos:
    """Acts on a daemon at random, through one client that stays and many that leave."""

    def __init__(self, daemon, llmos: AsyncClient, population: int) -> None:
        self.daemon = daemon
        self.llmos = llmos
        self.population = population
        self.chance = random.Random(SEED)
        self.pids: list[int] = []
        self.done: dict[str, int] = {}
        self.refused: dict[str, int] = {}

    async def reign(self, seconds: float) -> None:
        """Act for `seconds`."""
        until = time.monotonic() + seconds
        await asyncio.gather(*(self._go_on(until) for _ in range(AT_ONCE)), self._kill_drivers(until))

    async def _go_on(self, until: float) -> None:
        what = [
            self.start,
            self.kill,
            self.suspend,
            self.resume,
            self.nice,
            self.send,
            self.flood,
            self.call,
            self.visit,
        ]
        while time.monotonic() < until:
            act = self.start if len(self.pids) < self.population else self.chance.choice(what)
            try:
                async with asyncio.timeout(PATIENCE):
                    await act()
            except LlmosError as error:
                name = type(error).__name__
                self.refused[name] = self.refused.get(name, 0) + 1
            self.done[act.__name__] = self.done.get(act.__name__, 0) + 1

    def anyone(self) -> int:
        return self.chance.choice(self.pids) if self.pids else 1

    async def start(self) -> None:
        if len(self.pids) >= self.population:
            return
        program = self.chance.choice(["server", "server", "deaf", "writer", "holder", "family", "talker"])
        arguments = {"to": self.anyone()} if program == "talker" else {}
        task = await self.llmos.submit(program, arguments, detach=True, limits=Limits(mailbox=MAILBOX))
        self.pids.append(task.pid)

    async def kill(self) -> None:
        pid = self.anyone()
        if pid in self.pids:
            self.pids.remove(pid)
            await self.llmos.kill(pid)

    async def suspend(self) -> None:
        await self.llmos.suspend(self.anyone())

    async def resume(self) -> None:
        await self.llmos.resume(self.anyone())

    async def nice(self) -> None:
        await self.llmos.nice(self.anyone(), self.chance.randint(-20, 20))

    async def send(self) -> None:
        await self.llmos.send(self.anyone(), "x" * self.chance.choice([10, 10_000]), wait=False)

    async def flood(self) -> None:
        """Fill a mailbox; that of a deaf agent stays full."""
        pid = self.anyone()
        with contextlib.suppress(MailboxFull):
            for _ in range(MAILBOX + 1):
                await self.llmos.send(pid, "flood", wait=False)

    async def call(self) -> None:
        with contextlib.suppress(TimedOut):
            assert await self.llmos.call(self.anyone(), "echo", timeout=0.05) == "echo"

    async def visit(self) -> None:
        """A client connects, starts a task, and disconnects in the middle of its events."""
        async with AsyncClient(self.daemon.socket, name="visitor") as visitor:
            task = await visitor.submit(self.chance.choice(["writer", "family", "deaf"]))
            waiting = asyncio.create_task(visitor.call(self.anyone(), "no time", timeout=5))
            with contextlib.suppress(TimedOut):
                await task.result(timeout=self.chance.choice([0.0, 0.05, 0.2]))
        with contextlib.suppress(LlmosError):
            await waiting

    async def _kill_drivers(self, until: float) -> None:
        while time.monotonic() < until:
            await asyncio.sleep(1.0)
            for row in await self.llmos.slots():
                if row.driver_pid is not None and row.state == "ready":
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(row.driver_pid, signal.SIGKILL)
                    self.done["driver"] = self.done.get("driver", 0) + 1

    async def end_all(self) -> None:
        """Kill all processes, until none is left."""
        self.pids.clear()
        async with asyncio.timeout(PATIENCE):
            while rows := await self.llmos.ps():
                kills = [self.llmos.kill(row.pid) for row in rows]
                for outcome in await asyncio.gather(*kills, return_exceptions=True):
                    assert outcome is None or isinstance(outcome, LlmosError)


@pytest.mark.soak
def test_nothing_is_left_of_agents_that_everything_happened_to(launch, trial, eventually):
    daemon = launch()
    daemon_process = psutil.Process(daemon.pid)
    population, long = trial(short=80, long=1000), trial(short=False, long=True)

    async def reign(seconds: float) -> Chaos:
        async with AsyncClient(daemon.socket) as llmos:
            chaos = Chaos(daemon, llmos, population)
            await chaos.reign(seconds)
            assert (await llmos.stats()).processes >= population / 2
            await chaos.end_all()
        return chaos

    def quiet() -> bool:
        """Whether this client is the only one left, with no process and no slot in use."""
        with daemon.client() as client:
            stats, (slots,) = client.stats(), client.slots()
            left = stats.processes, stats.threads, stats.connections, slots.used, slots.queued, len(slots.sequences)
            return left == (0, 0, 1, 0, 0, 0) and slots.state == "ready"

    async def memory_of_the_daemon() -> int:
        """The memory once the daemon remembers other processes, and has dropped the logs of those in the chaos."""
        async with AsyncClient(daemon.socket) as llmos:
            for _ in range(REMEMBERED):
                await llmos.run("echo")
        return daemon.memory()

    asyncio.run(reign(trial(short=2, long=60)))  # allocates what such a load needs, before the measurement
    eventually(quiet, "all processes are gone after the first round", timeout=60)
    memory = asyncio.run(memory_of_the_daemon()) if long else 0
    descriptors = daemon_process.num_fds()

    chaos = asyncio.run(reign(trial(short=5, long=60)))
    eventually(quiet, "all processes are gone", timeout=60)
    eventually(lambda: daemon_process.num_fds() <= descriptors, "descriptors are closed")
    assert {"start", "kill", "suspend", "resume", "nice", "send", "flood", "call", "visit", "driver"} <= set(chaos.done)
    assert set(chaos.refused) <= {"UnknownProcess", "MailboxFull", "TimedOut", "Killed"}
    with daemon.client() as client:
        assert client.ping("there") == "there"
        assert client.ps() == []
        assert client.request(Names()) == []
        assert client.request(Locks()) == []
        assert client.run("ask", {"question": "q", "max_tokens": 5}).count("s") == 5
    if long:
        assert asyncio.run(memory_of_the_daemon()) < 1.05 * memory, memory
    for complaint in ("Traceback", "exception", "inside the kernel", "never retrieved", "abandoned"):
        assert complaint not in daemon.log
