"""Memory: the calls of an agent for its private keys and for shared regions."""

from __future__ import annotations

from collections.abc import Coroutine
from functools import partial
from typing import Any

from ipc.codec import reveal
from ipc.syscalls import MemoryDelete, MemoryGet, MemoryKeys, MemorySet
from llmosd.context.base import Caller
from llmosd.shared import Shared


class Memory(Caller):
    """The private memory of a process: keys and values that only its own threads see, until the process ends.

    The memory of a durable process survives a restart of the daemon. Keys have 1 to 512 characters.
    """

    __slots__ = ()

    async def get(self, key: str, default: Any = None) -> Any:
        """The value under `key`, or `default`. Each call returns a copy of a mutable value."""
        return reveal(await self._gate.call(self._process, MemoryGet(key, default)))

    def set(self, key: str, value: Any) -> Coroutine[Any, Any, None]:
        """Store `value` under `key`. Raises `NotEncodable` if msgpack cannot carry `value`, and `LimitExceeded`."""
        return self._gate.call(self._process, MemorySet(key, value))

    def delete(self, key: str) -> Coroutine[Any, Any, bool]:
        """Delete `key`. Returns whether it existed."""
        return self._gate.call(self._process, MemoryDelete(key))

    def keys(self, prefix: str = "") -> Coroutine[Any, Any, list[str]]:
        """The keys that begin with `prefix`, in the order in which they were first set."""
        return self._gate.call(self._process, MemoryKeys(prefix))


class MemoryMethods(Caller):
    """Private memory and shared regions."""

    __slots__ = ()

    @property
    def memory(self) -> Memory:
        """The private memory of this process."""
        return Memory(self._gate, self._process)

    def shared(self, name: str, *, ephemeral: bool = False, durable: bool = False) -> Shared:
        """A handle of the shared region `name`, which need not exist yet. The first `set` makes it.

        If an `ephemeral` handle makes the region, the region ends with this process. A `set` by a `durable` handle
        makes the region durable: value and version survive the daemon, and from then on each change costs one fsync.
        """
        return Shared(partial(self._gate.call, self._process), name, ephemeral=ephemeral, durable=durable)
