"""Memory, as an agent keeps things in its own and shares them with others."""

from __future__ import annotations

from collections.abc import Coroutine
from functools import partial
from typing import Any

from ipc.codec import reveal
from ipc.syscalls import MemoryDelete, MemoryGet, MemoryKeys, MemorySet
from llmosd.context.base import Caller
from llmosd.shared import Shared


class Memory(Caller):
    """The private memory of a process: keys and values that only its own threads see. It ends with the process.

    That of a durable process is there again after a restart of the daemon.
    """

    __slots__ = ()

    async def get(self, key: str, default: Any = None) -> Any:
        """The value under `key`, or `default`."""
        return reveal(await self._gate.call(self._process, MemoryGet(key, default)))

    def set(self, key: str, value: Any) -> Coroutine[Any, Any, None]:
        """Keep `value`, which msgpack must be able to carry, under `key`. Raises `LimitExceeded`."""
        return self._gate.call(self._process, MemorySet(key, value))

    def delete(self, key: str) -> Coroutine[Any, Any, bool]:
        """Forget `key`; whether it was there."""
        return self._gate.call(self._process, MemoryDelete(key))

    def keys(self, prefix: str = "") -> Coroutine[Any, Any, list[str]]:
        """The keys that begin with `prefix`, in the order in which they were first set."""
        return self._gate.call(self._process, MemoryKeys(prefix))


class MemoryMethods(Caller):
    """Private memory and shared regions."""

    __slots__ = ()

    @property
    def memory(self) -> Memory:
        """What this process keeps for itself."""
        return Memory(self._gate, self._process)

    def shared(self, name: str, *, ephemeral: bool = False, durable: bool = False) -> Shared:
        """The shared region `name`, which need not exist yet. Made by this handle and `ephemeral`, it ends with us.

        Set by a `durable` one it survives the daemon, with its version, and each change costs one fsync from then on.
        """
        return Shared(partial(self._gate.call, self._process), name, ephemeral=ephemeral, durable=durable)
