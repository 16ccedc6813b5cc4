"""Model slots under random actions and faults, in any order: each text is right, and nothing is left over."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

import pytest

from ipc.errors import DriverFailed, from_wire
from ipc.syscalls import Kill, Nice, Resume, Slots, Suspend
from kernel.drivers import protocol
from kernel.models.settings import ResourceSettings, SchedulingSettings
from kernel.models.spec import ModelSpec
from llmosd.context import Context
from tests.support.simulated import text_of
from tests.support.system import System

pytestmark = pytest.mark.usefixtures("small_streams")

GB = 10**9
COSTS = {
    "step_seconds": 0.1,
    "sequence_seconds": 0.0,
    "prompt_seconds": 0.001,
    "load_seconds": 0.5,
    "swap_seconds": 0.15,
    "token_bytes": 1000,
}


def simulated(**options: Any) -> ModelSpec:
    return ModelSpec(driver="simulated", slots=3, lease=4, options=COSTS | options, step_timeout=5.0, keep_alive=3.0)


# Two models under a budget that holds one; each has KV memory for about two of its three slots.
MODELS = {"one": simulated(kv_memory=80_000), "two": simulated(kv_memory=90_000)}
ACTIONS = ["spawn"] * 4 + [
    "suspend",
    "resume",
    "kill",
    "nice",
    "ask",
    "die",
    "hang",
    "refuse",
    "look",
    "read",
    "wait",
    "wait",
]


class Chaos:
    """A run of random actions, and the expected answer of each process."""

    def __init__(self, system: System, seed: int) -> None:
        self.system = system
        self.random = random.Random(seed)
        self.expected: dict[Any, Any] = {}
        self.readers: list[Any] = []

    async def act(self) -> None:
        await getattr(self, self.random.choice(ACTIONS))()
        driver = self.system.launcher.alive
        for each in driver:
            bundles = [len(said.progress) for said in each.said[-5:] if isinstance(said, protocol.Bundle)]
            assert max(bundles, default=0) <= 3
        assert sum(1 for each in driver if not each.stopped) <= 2

    async def spawn(self) -> None:
        model, tokens = self.random.choice(["one", "two"]), self.random.randint(1, 30)
        seed, samples = self.random.randint(0, 99), self.random.choice([1, 1, 2])
        reader = self.system.recorder(credit=self.random.choice([0, 10**6]))
        self.readers.append(reader)
        process = self.system.spawn(
            "teller",
            stream=reader.stream,
            model=model,
            tokens=tokens,
            seed=seed,
            samples=samples,
            priority=self.random.randint(-3, 3),
        )
        self.expected[process] = [text_of(seed + n, tokens) for n in range(samples)]
        await self.system.turns(self.random.randint(0, 5))

    async def ask(self) -> None:
        process = self.system.spawn("asker", model=self.random.choice(["one", "two"]))
        self.expected[process] = [2, 1]

    async def suspend(self) -> None:
        if process := self.one():
            await self.system.call(Suspend(process.pid))

    async def resume(self) -> None:
        if process := self.one():
            await self.system.call(Resume(process.pid))

    async def kill(self) -> None:
        if process := self.one():
            del self.expected[process]
            await self.system.call(Kill(process.pid))

    async def nice(self) -> None:
        if process := self.one():
            await self.system.call(Nice(process.pid, self.random.randint(-5, 5)))

    async def die(self) -> None:
        if self.random.random() < 0.5 and self.system.launcher.alive:
            self.random.choice(self.system.launcher.alive).die(self.random.choice(["signal 9", "exit code 1"]))

    async def hang(self) -> None:
        if self.random.random() < 0.3 and self.system.launcher.alive:
            device = self.random.choice(self.system.launcher.alive).device
            device.handle = lambda message: None
            device._step = lambda *_: None

    async def refuse(self) -> None:
        """Damages all swap files."""
        for path in self.system.swap.rglob("*.kv"):
            with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:  # creates no file
                file.write(b"?")

    async def look(self) -> None:
        self.system.machine.available = self.random.choice([GB, 4 * GB, 12 * GB])
        self.system.look()
        await self.system.call(Slots())

    async def read(self) -> None:
        """Lets a reader that was behind catch up."""
        if self.readers:
            self.random.choice(self.readers).stream.grant(10**6)

    async def wait(self) -> None:
        await asyncio.sleep(self.random.choice([0.01, 0.1, 0.5, 3.0]))

    def one(self) -> Any:
        alive = [process for process in self.expected if not process.ended]
        return self.random.choice(alive) if alive else None

    async def finish(self) -> None:
        self.system.machine.available = 12 * GB
        for _ in range(10):
            self.system.look()
        for reader in self.readers:
            reader.stream.grant(10**6)
        for process in self.expected:
            if not process.ended:
                await self.system.call(Resume(process.pid))
        for process, expected in self.expected.items():
            status = await self.system.status(process)
            if status.error is not None:  # too many of its drivers died, by chance
                assert isinstance(from_wire(status.error), DriverFailed), status.error
                continue
            assert status.value is not None
            assert await self.system.result(process) == expected


async def teller(ctx: Context, model: str, tokens: int, seed: int, samples: int) -> list[str]:
    if samples == 1:
        return [await ctx.generate("one two three", model=model, max_tokens=tokens, seed=seed)]
    made = await ctx.generate("one two three", model=model, max_tokens=tokens, seed=seed, samples=samples)
    return [one.text for one in made]


async def asker(ctx: Context, model: str) -> list[int]:
    return [len(await ctx.embed(["a", "b"], model)), len(await ctx.score("a", ["b"], model))]


@pytest.mark.soak
@pytest.mark.parametrize("models", [MODELS])
@pytest.mark.parametrize("resources", [ResourceSettings(memory=15 * GB // 10, collate=4.0)])
@pytest.mark.parametrize("scheduling", [SchedulingSettings(aging=0.5, quantum=6)])
@pytest.mark.parametrize("seed", range(15))
async def test_each_text_is_right_and_nothing_is_left(system: System, seed: int, trial: Any) -> None:
    system.program(teller)
    system.program(asker)
    system.machine.sizes.update(one=GB, two=GB)
    chaos = Chaos(system, seed)
    for _ in range(trial(short=60, long=600)):
        await chaos.act()
    await chaos.finish()
