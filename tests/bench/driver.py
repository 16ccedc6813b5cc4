"""The driver process of llmosd under a bench, which sends it the messages of a kernel and times the answers.

Used by the benches of decoding, of the engine and of slots. It speaks the driver protocol, and never looks behind it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine
from pathlib import Path
from time import perf_counter
from typing import Any, Self, TypeVar

from ipc.syscalls import Sampling
from kernel.drivers.process import launch
from kernel.drivers.protocol import (
    Admit,
    Bundle,
    Done,
    FromDriver,
    Load,
    Loaded,
    LoadFailed,
    Parked,
    Renew,
    SequenceFailed,
    ToDriver,
)

T = TypeVar("T")


class Driver:
    """Runs from entry to exit, and is idle between calls. `facts`: its description of the model."""

    def __init__(self, model: str, cache: Path, options: dict[str, Any] | None = None) -> None:
        self.facts: dict[str, Any] = {}
        self.ids = itertools.count(1)  # for sequences
        self._load = Load(model, str(cache), max_tokens=1024, options=options or {})
        self._parked: set[int] = set()

    def __enter__(self) -> Self:
        self._runner = asyncio.Runner()
        self._runner.run(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._process.stop())
        self._runner.close()

    def run(self, conversation: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine that talks to the driver by `send` and `next`."""
        return self._runner.run(conversation)

    def send(self, message: ToDriver) -> None:
        self._process.send(message)

    async def next(self) -> tuple[float, FromDriver]:
        """Wait for the driver's next message; return the time of its arrival, and the message."""
        at, said = await self._said.get()
        if isinstance(said, str):
            raise SystemExit(f"the driver ended: {said}")
        if isinstance(said, SequenceFailed | LoadFailed):
            raise SystemExit(f"the driver failed: {said.error.message}")
        return at, said

    def begin(self, prompts: list[list[int]], tokens: int) -> None:
        """Run `prompts` up to the first of at most `tokens` tokens each, all together and greedily.

        A lease of one token parks each sequence there.
        """
        self.run(self._begin(prompts, tokens))

    def go(self, tokens: int) -> tuple[int, float]:
        """Make `tokens` more in each sequence that has not ended; return their number, and the seconds taken."""
        return self.run(self._go(tokens))

    async def _start(self) -> None:
        self._said: asyncio.Queue[tuple[float, FromDriver | str]] = asyncio.Queue()
        self._process = await launch("transformers", "bench", self._note, self._note)
        self._process.send(self._load)
        while not self.facts:
            _, message = await self.next()
            if isinstance(message, Loaded):
                self.facts = message.facts

    def _note(self, said: FromDriver | str) -> None:
        self._said.put_nowait((perf_counter(), said))

    async def _begin(self, prompts: list[list[int]], tokens: int) -> None:
        assert not self._parked, "the sequences before have not ended"
        sampling = Sampling(max_tokens=tokens, temperature=0)
        running = set()
        for prompt in prompts:
            running.add(number := next(self.ids))
            self._process.send(Admit(number, "", sampling, 1, prompt_ids=prompt))
        await self._follow(running)

    async def _go(self, tokens: int) -> tuple[int, float]:
        running, self._parked = self._parked, set()
        started = perf_counter()
        for number in running:
            self._process.send(Renew(number, tokens))
        made, last = await self._follow(running)
        return made, last - started

    async def _follow(self, running: set[int]) -> tuple[int, float]:
        """Wait until all have parked or ended; return the number of tokens, and the time of the last."""
        made, last = 0, perf_counter()
        while running:
            at, message = await self.next()
            if isinstance(message, Bundle):
                made, last = made + sum(len(progress.ids) for progress in message.progress), at
            elif isinstance(message, Parked | Done):
                running.discard(message.sequence)
                if isinstance(message, Parked):
                    self._parked.add(message.sequence)
        return made, last
