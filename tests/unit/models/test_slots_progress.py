"""Nothing stands still: whatever is held, revoked, swapped, refused, shrunk or killed, each sequence ends.

If a driver has work and sends nothing for `SILENCE` of its steps, the kernel has forgotten it: a message was lost, or
no memory is freed. The watchdog of hung drivers would save the work and hide the fault; here it fails the test.
"""

from __future__ import annotations

import asyncio
import errno
import random
from typing import Any

import pytest

from ipc.errors import DeadlineUnreachable, DriverFailed, LimitExceeded, from_wire
from ipc.syscalls import Kill, Nice, Resume, SetPolicy, Suspend
from kernel.drivers.simulated import swap
from kernel.models.runtime import ModelRuntime
from kernel.models.settings import SchedulingSettings
from kernel.models.spec import ModelSpec
from llmosd.context import Context
from tests.support.agents import teller
from tests.support.drivers import InLoopDriver
from tests.support.simulated import text_of
from tests.support.system import System

pytestmark = pytest.mark.usefixtures("small_streams")

SILENCE = 15.0  # steps, and seconds
TOKEN = 1000  # bytes
MEMORY = 200 * TOKEN  # of which a long generation takes more than half
LONG = 120
SPEC = ModelSpec(
    driver="simulated",
    slots=4,
    lease=4,
    step_timeout=SILENCE,
    options={
        "step_seconds": 1.0,
        "sequence_seconds": 0.0,
        "prompt_seconds": 0.0,
        "token_bytes": TOKEN,
        "kv_memory": MEMORY,
        "swap_seconds": 0.5,
    },
)
POLICIES = ["priority", "fifo", "round_robin", "fair", "mlfq", "attained", "edf"]
ACTIONS = ["spawn"] * 6 + ["suspend", "resume", "kill", "nice", "read", "resize", "policy", "swaps", "wait", "wait"]


class Trial:
    """A run of random actions. `frail`: the share of messages to or from a driver at which it dies."""

    def __init__(self, system: System, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.system = system
        self.random = random.Random(seed)
        self.expected: dict[Any, str] = {}
        self.others: list[Any] = []
        self.killed: set[Any] = set()
        self.readers: list[Any] = []
        self.tokens = 0
        self.shrunk = False
        self.swaps_fail = 0.0
        self.frail = self.random.choice([0.0, 0.0, 0.01])
        self.ended: list[str] = []  # the causes of the drivers' deaths
        self._have_them_die(monkeypatch)
        real = swap.write

        def write(path: str, sequence: Any) -> None:
            if self.random.random() < self.swaps_fail:
                raise OSError(errno.ENOSPC, "no room")
            real(path, sequence)

        monkeypatch.setattr(swap, "write", write)

    def _have_them_die(self, monkeypatch: pytest.MonkeyPatch) -> None:
        dying: set[InLoopDriver] = set()
        for name in ("_handle", "_say"):
            real = getattr(InLoopDriver, name)

            def maybe(driver: InLoopDriver, message: Any, real: Any = real) -> None:
                """The driver may die before or after it handles or sends this message."""
                if driver in dying:
                    return
                dies = self.random.random() < self.frail
                if not dies or self.random.random() < 0.5:
                    real(driver, message)
                if dies:
                    dying.add(driver)
                    self.system.loop.call_soon(driver.die)

            monkeypatch.setattr(InLoopDriver, name, maybe)
        died = ModelRuntime.driver_died

        def driver_died(runtime: ModelRuntime, how: str) -> None:
            self.ended.append(how)
            died(runtime, how)

        monkeypatch.setattr(ModelRuntime, "driver_died", driver_died)

    @property
    def runtime(self) -> ModelRuntime:
        runtime: ModelRuntime = self.system.kernel.resources.runtime(None)
        return runtime

    def one(self) -> Any:
        alive = [process for process in (*self.expected, *self.others) if not process.ended]
        return self.random.choice(alive) if alive else None

    async def act(self) -> None:
        await getattr(self, self.random.choice(ACTIONS))()

    async def spawn(self) -> None:
        """Spawns one process, or several in the same turn of the loop."""
        for _ in range(self.random.choice([1, 1, 2, 3])):
            priority, reader = self.random.choice([-5, 0, 0, 5]), self.system.recorder(self.random.choice([0, 10**6]))
            self.readers.append(reader)
            if self.random.random() < 0.15:
                self.others.append(self.system.spawn("asker", priority=priority))
                continue
            tokens, seed = self.random.choice([1, 5, 8, LONG]), self.random.randint(0, 99)
            self.tokens += tokens
            process = self.system.spawn("teller", stream=reader.stream, priority=priority, tokens=tokens, seed=seed)
            self.expected[process] = text_of(seed, tokens)

    async def suspend(self) -> None:
        if process := self.one():
            await self.system.call(Suspend(process.pid))

    async def resume(self) -> None:
        if process := self.one():
            await self.system.call(Resume(process.pid))

    async def kill(self) -> None:
        if process := self.one():
            self.killed.add(process)
            await self.system.call(Kill(process.pid))

    async def nice(self) -> None:
        if process := self.one():
            await self.system.call(Nice(process.pid, self.random.randint(-5, 5)))

    async def read(self) -> None:
        """Lets a reader that was behind catch up."""
        if self.readers:
            self.random.choice(self.readers).stream.grant(10**6)

    async def resize(self) -> None:
        """Shrinks the KV memory, maybe below the need of a waiting sequence. The balancer returns it in steps."""
        if self.runtime.state.name == "ready" and self.random.random() < 0.5:
            share = self.random.choice([0.3, 0.65, 0.8])
            self.shrunk = self.shrunk or share * MEMORY < (LONG + 3) * TOKEN
            self.runtime.resize(int(share * MEMORY), "the test")

    async def policy(self) -> None:
        if self.random.random() < 0.5:
            await self.system.call(SetPolicy(None, self.random.choice(POLICIES)))

    async def swaps(self) -> None:
        self.swaps_fail = self.random.choice([0.0, 0.5, 1.0])

    async def wait(self) -> None:
        await asyncio.sleep(self.random.choice([0.1, 0.5, 1.0, 4.0, 20.0]))

    async def look(self) -> None:
        """Polls the machine every second, as the daemon does."""
        while True:
            await asyncio.sleep(1.0)
            self.system.look()

    async def finish(self) -> None:
        """Stops all faults. Everything left must end within twice the steps that all need one after another."""
        self.swaps_fail = self.frail = 0.0
        for reader in self.readers:
            reader.stream.grant(10**6)
        for process in (*self.expected, *self.others):
            if not process.ended:
                await self.system.call(Resume(process.pid))
        async with asyncio.timeout(2.0 * (self.tokens + len(self.others)) + 100.0):
            for process in (*self.expected, *self.others):
                status = await self.system.status(process)
                if process not in self.killed:
                    self._check(status, self.expected.get(process))
        assert not [how for how in self.ended if "hung" in how]

    def _check(self, status: Any, text: str | None) -> None:
        if status.error is not None:
            error = from_wire(status.error)
            allowed = (DriverFailed, LimitExceeded) if self.shrunk else (DriverFailed,)
            assert isinstance(error, (*allowed, DeadlineUnreachable)), error
        elif text is not None:
            assert status.value == text


async def asker(ctx: Context) -> int:
    return len(await ctx.score("one two three", ["four", "five"]))


@pytest.mark.parametrize("models", [{"sim": SPEC}])
@pytest.mark.parametrize("scheduling", [SchedulingSettings(aging=0.5, quantum=6)])
@pytest.mark.parametrize("seed", range(40))
async def test_each_sequence_ends_and_no_driver_is_forgotten(
    system: System, seed: int, trial: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    system.program(teller)
    system.program(asker)
    run = Trial(system, seed, monkeypatch)
    looking = asyncio.Task(run.look(), loop=system.loop)
    try:
        for _ in range(trial(short=40, long=400)):
            await run.act()
        await run.finish()
    finally:
        looking.cancel()
