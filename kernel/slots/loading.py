"""How one model gets into memory: what it needs is looked at, what it may have is told to the driver, and what it took
is measured.

Owned by a model runtime, which says when. It starts no driver and decides on no memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import msgspec

from ipc.errors import ModelLoadFailed
from kernel.drivers import protocol
from kernel.slots.footprint import Footprint, Measured
from kernel.slots.model import ModelSpec
from kernel.slots.requirements import check_requirements
from kernel.slots.surroundings import Surroundings


class Loading:
    """`context` and `facts` are what the driver last said of the model. `cores` are its processors, none for all."""

    def __init__(self, name: str, spec: ModelSpec, around: Surroundings) -> None:
        self.context: int | None = None
        self.facts: dict[str, Any] = {}
        self.cores: list[int] = []
        self._name = name
        self._spec = spec
        self._cache = str(around.cache)
        self._book = around.book
        self._area = around.area
        self._key = msgspec.json.encode((spec.driver, spec.path, spec.options)).decode()
        self._granted: int | None = None  # what the load that is under way was granted for keys and values
        self.footprint = Footprint(around.book.get(self._key))

    async def look(self) -> None:
        """See what it needs. Raises `MissingExtra`, `ModelNotFound` or `ModelLoadFailed`."""
        try:
            async with asyncio.timeout(self._spec.load_timeout):
                self.footprint.estimate = await asyncio.to_thread(check_requirements, self._name, self._spec)
        except (OSError, TimeoutError) as error:
            raise ModelLoadFailed(f"model {self._name}: its files cannot be looked at: {error}") from None

    def order(self, cores: list[int], granted: int | None) -> protocol.Load:
        """What a driver is told first. `granted`: bytes for keys and values; None leaves them to the driver."""
        self.cores, self._granted = cores, granted
        spec = self._spec
        return protocol.Load(spec.path, self._cache, spec.max_tokens, spec.options, granted, cores, self._area.folder())

    def loaded(self, message: protocol.Loaded, size: int, seconds: float) -> Coroutine[Any, Any, None]:
        """The driver is ready, after `seconds`, and takes `size` bytes; what comes back writes that down."""
        self.context, self.facts = message.context, message.facts
        measured = Measured(size, seconds, message.token_bytes, message.context)
        contents = self._book.put(self._key, measured)
        self.footprint.loaded(
            measured,
            message.kv_memory,
            most=message.kv_memory if self._granted is None else self._spec.options.get("kv_memory"),
            elsewhere=str(message.facts.get("device", "")).startswith("cuda"),
        )
        return asyncio.to_thread(self._book.write, contents)
