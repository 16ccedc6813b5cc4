"""Shared memory: named regions with versions, which every process may read, change, watch and delete.

The gate calls its handlers. Immutable values pass by reference, all others are encoded once; a value from a client
stays encoded until an agent reads it. All regions take their versions from one counter, so a name that is deleted and
set again gets a higher version, though nothing about a deleted region is stored. This module never writes to the
journal: `RegionJournal` does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Protocol, cast

from ipc.errors import Busy, InvalidCall, LimitExceeded, RegionDeleted, TimedOut, UnknownRegion, VersionConflict
from ipc.frames import MAX_FRAME
from ipc.syscalls import RegionInfo, Regions, SharedDelete, SharedGet, SharedSet, SharedWatch, Versioned
from kernel.core.fiber import PARK
from kernel.core.plain_wait import PlainWait
from kernel.core.process import Process, Thread
from kernel.core.timers import Timer
from kernel.gate import Gate
from kernel.lib.pages import names_after, shortened
from kernel.lib.units import isolate_and_measure
from kernel.lib.validation import check_timeout
from kernel.lib.wording import quoted
from kernel.memory.quotas import MemoryQuotas, MemoryUsage, check_name

if TYPE_CHECKING:
    from kernel.core.storage_receipt import StorageReceipt

RESERVED = "tool:"  # prefix of the names that the kernel gives to large results of tools
FRAME_ROOM = 1024  # bytes of a frame that are reserved for everything but the value


class Region:
    """A value that all processes may see. Like a file, it is charged to the owner of the process that created it."""

    __slots__ = ("creator", "durable", "owner", "size", "value", "version")

    def __init__(self, owner: str, creator: int) -> None:
        self.owner = owner
        self.creator = creator  # the pid for an ephemeral region; 0: it does not end with a process
        self.durable = False  # whether it survives the daemon
        self.value: Any = None
        self.version = 0
        self.size = 0


class RegionJournal(Protocol):
    """Persists durable regions. The caller of a change waits for the receipt, if there is one."""

    def changed(self, process: Process, name: str, region: Region) -> StorageReceipt | None: ...

    def deleted(self, process: Process, name: str) -> StorageReceipt | None: ...


class SharedMemory:
    """All regions by name, and the threads that watch them. `journal`, if there is one, persists durable regions."""

    def __init__(self, gate: Gate, quotas: MemoryQuotas) -> None:
        self._quotas = quotas
        self.journal: RegionJournal | None = None
        self._regions: dict[str, Region] = {}
        self._last_version = 0
        self._size = 0
        self._accounts: dict[str, MemoryUsage] = {}  # by owner, for owners with regions
        self._ephemeral: dict[int, set[str]] = {}  # by pid of the creator
        self._watchers: dict[str, dict[Thread, None]] = {}  # in the order of arrival
        gate.register(
            {
                SharedGet: self.get,
                SharedSet: self.set,
                SharedWatch: self.watch,
                SharedDelete: self.delete,
                Regions: self.list,
            }
        )

    def set_quotas(self, quotas: MemoryQuotas) -> None:
        """Check later changes against these quotas. Nothing that is stored is dropped."""
        self._quotas = quotas

    def get(self, process: Process, call: SharedGet) -> Versioned:
        return self._read(process, self._region(call.name))

    def set(self, process: Process, call: SharedSet) -> int | Coroutine[Any, Any, int]:
        check_name(call.name, "the name of a region")
        region = self._regions.get(call.name)
        if region is None and call.name.startswith(RESERVED):
            raise InvalidCall(
                f"the kernel reserves names that begin with {RESERVED!r}; choose another name than {call.name!r}"
            )
        found = 0 if region is None else region.version
        if call.expected is not None and call.expected != found:
            state = f"is at version {found}" if found else "does not exist"
            raise VersionConflict(
                f"region {call.name!r} {state}, and version {call.expected} was expected; read it and try again",
                name=call.name,
                expected=call.expected,
                found=found,
            )
        if call.durable and (call.ephemeral or (region is not None and region.creator) or self.journal is None):
            raise InvalidCall(f"region {call.name!r} cannot be durable: it is ephemeral, or the daemon has no journal")
        value, size = isolate_and_measure(call.value)
        version = self.put(process, call.name, value, size, ephemeral=call.ephemeral)
        region = self._regions[call.name]
        region.durable = region.durable or call.durable
        receipt = (
            self.journal.changed(process, call.name, region) if region.durable and self.journal is not None else None
        )
        return version if receipt is None else receipt.answer_after_commit(version)

    def put(self, process: Process, name: str, value: Any, size: int, *, ephemeral: bool) -> int:
        """Store `value` on behalf of `process`. Returns the new version.

        `value` and `size` are the results of `isolate_and_measure`.
        """
        region = self._regions.get(name)
        created = region is None
        if region is None:
            region = Region(process.owner, process.pid if ephemeral else 0)
        size += len(name.encode(errors="surrogatepass"))
        self._charge(region.owner, int(created), size - region.size)
        if created:
            self._regions[name] = region
            if ephemeral:
                self._ephemeral.setdefault(process.pid, set()).add(name)
        self._last_version += 1
        region.value, region.size, region.version = value, size, self._last_version
        self._wake(name)
        return region.version

    def value(self, name: str) -> Any:
        """The value of the existing region `name`."""
        return self._regions[name].value

    def watch(self, process: Process, call: SharedWatch) -> Versioned | Coroutine[Any, Any, Versioned]:
        check_name(call.name, "the name of a region")
        timeout = check_timeout(call.timeout)
        if call.after < 0:
            raise InvalidCall(f"the version to watch from must be 0 or more, not {call.after}")
        region = self._changed(call)
        return self._read(process, region) if region is not None else self._watch(process, call, timeout)

    async def _watch(self, process: Process, call: SharedWatch, timeout: float | None = None) -> Versioned:
        thread = cast("Thread", asyncio.current_task())
        timer = Timer(thread, timeout)
        watchers = self._watchers.setdefault(call.name, {})
        watchers[thread] = None
        name = quoted(call.name)
        doing = f"waiting for a change of shared region {name} after version {call.after}"
        wait = PlainWait(f"change of {call.name}", "region", doing, f"a process sets or deletes region {name}")
        try:
            while (region := self._changed(call)) is None:
                if timer.expired:
                    raise TimedOut(
                        f"region {call.name!r} did not change after version {call.after} within {call.timeout} s",
                        name=call.name,
                        timeout=call.timeout,
                    )
                thread.waits_for = wait
                await PARK
            return self._read(process, region)
        finally:
            timer.cancel()
            del watchers[thread]
            if not watchers:
                del self._watchers[call.name]

    def delete(self, process: Process, call: SharedDelete) -> Coroutine[Any, Any, None] | None:
        durable = self._region(call.name).durable
        self._remove(call.name)
        receipt = self.journal.deleted(process, call.name) if durable and self.journal is not None else None
        return None if receipt is None else receipt.answer_after_commit(None)

    def list(self, process: Process, call: Regions) -> list[RegionInfo]:
        rows = []
        for name in names_after(self._regions, call.after, Regions):
            region, watchers = self._regions[name], len(self._watchers.get(name, ()))
            rows.append(
                RegionInfo(name, region.version, region.size, shortened(region.owner), region.creator, watchers)
            )
        return rows

    def process_ended(self, process: Process) -> None:
        for name in tuple(self._ephemeral.get(process.pid, ())):
            self._remove(name)

    def restore(self, name: str, version: int, owner: str, value: Any) -> None:
        """Restore a durable region of a previous run, even if it exceeds the present quotas."""
        region = self._regions[name] = Region(owner, 0)
        region.value, region.size = isolate_and_measure(value)
        region.size += len(name.encode(errors="surrogatepass"))
        region.version, region.durable = version, True
        self._accounts.setdefault(owner, MemoryUsage()).charge(1, region.size)
        self._size += region.size

    def start_ids_after(self, version: int) -> None:
        """From now on, assign only versions above `version`."""
        self._last_version = max(self._last_version, version)

    # ---- inside

    def _region(self, name: str) -> Region:
        check_name(name, "the name of a region")
        region = self._regions.get(name)
        if region is None:
            raise UnknownRegion(f"there is no shared region {name!r}; set it to create it", name=name)
        return region

    def _read(self, process: Process, region: Region) -> Versioned:
        if process.is_client and region.size > MAX_FRAME - FRAME_ROOM:
            raise LimitExceeded(
                f"the region holds {region.size} bytes, and a client can receive at most {MAX_FRAME - FRAME_ROOM}",
                limit="frame",
                maximum=MAX_FRAME - FRAME_ROOM,
                wanted=region.size,
            )
        return Versioned(region.value, region.version)

    def _changed(self, call: SharedWatch) -> Region | None:
        """The region if it has changed since version `call.after`, else None. Raises `RegionDeleted` if it is gone."""
        region = self._regions.get(call.name)
        if region is None and call.after:
            raise RegionDeleted(f"region {call.name!r} of version {call.after} was deleted", name=call.name)
        return region if region is not None and region.version > call.after else None

    def _remove(self, name: str) -> None:
        region = self._regions.pop(name)
        self._charge(region.owner, -1, -region.size)
        if region.creator:
            names = self._ephemeral[region.creator]
            names.discard(name)
            if not names:
                del self._ephemeral[region.creator]
        self._wake(name)

    def _charge(self, owner: str, entries: int, size: int) -> None:
        """Charge `owner` for the change. Raises `LimitExceeded`, or `Busy` if all regions together are too large."""
        account = self._accounts.get(owner) or MemoryUsage()
        account.check(f"owner {owner!r}", "regions", entries, size, (self._quotas.regions, self._quotas.region_bytes))
        if size > 0 and self._size + size > self._quotas.shared_bytes:
            raise Busy(
                f"shared memory would hold {self._size + size} bytes, and the limit is {self._quotas.shared_bytes}; "
                "delete some regions",
                retry_after=1.0,
            )
        account.charge(entries, size)
        self._size += size
        if account.entries:
            self._accounts[owner] = account
        else:
            self._accounts.pop(owner, None)

    def _wake(self, name: str) -> None:
        for thread in tuple(self._watchers.get(name, ())):
            thread.wake()
