"""Private memory: keys and values that belong to one process and are freed with it.

The gate calls its handlers, which answer without waiting. All threads of a process share its keys; no other process
sees them. Mutable values are stored encoded, so that each reader gets its own copy.
"""

from __future__ import annotations

from typing import Any

from ipc.syscalls import MemoryDelete, MemoryGet, MemoryKeys, MemorySet
from kernel.core.process import Process
from kernel.gate import Gate
from kernel.lib.pages import from_place
from kernel.lib.units import isolate_and_measure
from kernel.memory.quotas import MemoryQuotas, MemoryUsage, check_name
from kernel.processes.limits import LimitEnforcer


class ProcessMemory:
    """The values of one process by key, each with its size in bytes. The size includes the key."""

    __slots__ = ("account", "values")

    def __init__(self) -> None:
        self.values: dict[str, tuple[Any, int]] = {}
        self.account = MemoryUsage()


class PrivateMemory:
    """The memory of all living processes that have set a key, by pid."""

    def __init__(self, gate: Gate, quotas: MemoryQuotas, limits: LimitEnforcer) -> None:
        self._limits = limits
        self._quotas = quotas
        self._stores: dict[int, ProcessMemory] = {}
        gate.register({MemoryGet: self.get, MemorySet: self.set, MemoryDelete: self.delete, MemoryKeys: self.keys})

    def set_quotas(self, quotas: MemoryQuotas) -> None:
        """Check later changes against these quotas. Nothing that is stored is dropped."""
        self._quotas = quotas

    def get(self, process: Process, call: MemoryGet) -> Any:
        check_name(call.key, "a key")
        store = self._stores.get(process.pid)
        entry = store.values.get(call.key) if store is not None else None
        return call.default if entry is None else entry[0]

    def set(self, process: Process, call: MemorySet) -> None:
        check_name(call.key, "a key")
        value, size = isolate_and_measure(call.value)
        size += len(call.key.encode(errors="surrogatepass"))
        store = self._stores.get(process.pid) or ProcessMemory()
        _, before = store.values.get(call.key, (None, 0))
        entries, growth = call.key not in store.values, size - before
        maxima = self._quotas.keys, self._quotas.key_bytes
        self._limits.check_memory(process, entries, growth, self.usage)
        store.account.check(f"process {process.pid}", "keys", entries, growth, maxima)
        store.values[call.key] = value, size
        store.account.charge(entries, growth)
        self._stores[process.pid] = store

    def delete(self, process: Process, call: MemoryDelete) -> bool:
        check_name(call.key, "a key")
        store = self._stores.get(process.pid)
        if store is None or call.key not in store.values:
            return False
        _, size = store.values.pop(call.key)
        store.account.charge(-1, -size)
        return True

    def keys(self, process: Process, call: MemoryKeys) -> list[str]:
        store = self._stores.get(process.pid)
        keys = [key for key in store.values if key.startswith(call.prefix)] if store is not None else []
        # The answer to an agent is no frame, so it has all keys.
        return keys if call.start is None and not process.is_client else from_place(keys, call.start, MemoryKeys)

    def usage(self, process: Process) -> tuple[int, int]:
        """The number of keys of `process`, and the bytes of these keys and their values."""
        store = self._stores.get(process.pid)
        return (store.account.entries, store.account.size) if store is not None else (0, 0)

    def process_ended(self, process: Process) -> None:
        self._stores.pop(process.pid, None)
