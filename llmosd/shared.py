"""A handle of a shared region, for agents and asynchronous clients.

`Context.shared` and `AsyncClient.shared` make it. A handle stores the name of the region and a function that makes
system calls. It never caches the value.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from ipc.codec import reveal
from ipc.errors import UnknownRegion, VersionConflict
from ipc.syscalls import SharedDelete, SharedGet, SharedSet, SharedWatch, Syscall, Versioned


class Shared:
    """The region `name`: one value that all processes may read and change, and a version that grows with each change.

    Msgpack must be able to carry the value. Inside the daemon, immutable values (bytes, texts, numbers, frozen Structs)
    pass by reference; of any other value each reader gets its own copy. A region lasts until it is deleted. If an
    `ephemeral` handle makes the region, the region ends with the process. After a `set` by a `durable` handle, the
    region survives the daemon.
    """

    __slots__ = ("_call", "_durable", "_ephemeral", "name")

    def __init__(
        self,
        call: Callable[[Syscall], Awaitable[Any]],
        name: str,
        *,
        ephemeral: bool = False,
        durable: bool = False,
    ) -> None:
        self._call = call
        self._ephemeral = ephemeral
        self._durable = durable
        self.name = name

    async def get(self) -> Versioned:
        """The value and the version of the region. Raises `UnknownRegion`."""
        return _revealed(await self._call(SharedGet(self.name)))

    async def set(self, value: Any) -> int:
        """Set the value, and make the region if it does not exist. Returns the new version. Raises `LimitExceeded`."""
        return await self._set(value, None)

    async def compare_and_set(self, value: Any, version: int) -> int:
        """Set the value if the region is still at `version`. Returns the new version. Raises `VersionConflict`.

        Version 0 means that the region must not exist.
        """
        return await self._set(value, version)

    async def update(self, function: Callable[[Any], Any], initial: Any = None) -> Versioned:
        """Replace the value by `function(value)`. Returns the new value and version.

        No change is lost if others change the region at the same time: after each conflict, `function` is called again
        with the new value. So it must have no side effects. If the region does not exist, `function` gets `initial`.
        """
        while True:
            try:
                value, version = await self.get()
            except UnknownRegion:
                value, version = initial, 0
            value = function(value)
            try:
                return Versioned(value, await self.compare_and_set(value, version))
            except VersionConflict:
                continue

    async def watch(self, after: int, timeout: float | None = None) -> Versioned:
        """Wait until the version is above `after`. Returns the value and the version: after several changes, the last.

        With `after` 0, it also waits for a region that does not exist yet. Raises `RegionDeleted`, and `TimedOut` after
        `timeout` seconds.
        """
        return _revealed(await self._call(SharedWatch(self.name, after, timeout)))

    async def delete(self) -> None:
        """Delete the region. Raises `UnknownRegion`."""
        await self._call(SharedDelete(self.name))

    async def _set(self, value: Any, expected: int | None) -> int:
        version: int = await self._call(SharedSet(self.name, value, expected, self._ephemeral, self._durable))
        return version


def _revealed(read: Versioned) -> Versioned:
    return Versioned(reveal(read.value), read.version)
