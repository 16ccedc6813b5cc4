"""A shared region, as agents and asynchronous clients handle it.

Made by `Context.shared` and `AsyncClient.shared`. It knows a name and how to make a call, and keeps no value.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from ipc.codec import reveal
from ipc.errors import UnknownRegion, VersionConflict
from ipc.syscalls import SharedDelete, SharedGet, SharedSet, SharedWatch, Syscall, Versioned


class Shared:
    """The region `name`: one value that all may read and change, and its version, which grows with every change.

    Values are what msgpack carries. Bytes, texts and frozen Structs pass inside the daemon by reference; of all else
    each reader gets a copy of its own. A region stays until it is deleted; one that is made by an `ephemeral` handle
    ends with the process that made it. Once set by a `durable` one it survives the daemon.
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
        """Value and version. Raises `UnknownRegion` if there is none."""
        return _revealed(await self._call(SharedGet(self.name)))

    async def set(self, value: Any) -> int:
        """Give the region a value whatever it held, and make it if need be; its new version."""
        return await self._set(value, None)

    async def compare_and_set(self, value: Any, version: int) -> int:
        """Give the region a value if it is still at `version`; its new version. Raises `VersionConflict`.

        Version 0 stands for a region that does not exist.
        """
        return await self._set(value, version)

    async def update(self, function: Callable[[Any], Any], initial: Any = None) -> Versioned:
        """Replace the value by `function` of it, however many others do so, too; the new value and version.

        `function` may be called several times. If there is no region, it is given `initial`.
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
        """Value and version as soon as the version is higher than `after`: the latest, if it changed often.

        With `after` 0 it waits for the region to be made. Raises `RegionDeleted`, and `TimedOut` after `timeout`
        seconds.
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
