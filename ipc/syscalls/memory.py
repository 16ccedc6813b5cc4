"""Memory: what an agent keeps for itself, and the regions that all share."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import msgspec

from ipc.syscalls.base import Body, Count, Seconds, Syscall

NIL = msgspec.Raw(b"\xc0")


class Versioned(NamedTuple):
    """The value of a shared region and the version it had when it was read."""

    value: Any
    version: int


class RegionInfo(msgspec.Struct, frozen=True):
    """A shared region. `size`: bytes of the encoded value; `creator`: its process, 0 unless the region ends with it."""

    name: str
    version: int
    size: int
    owner: str
    creator: int
    watchers: int


class MemoryGet(Syscall, tag="memory_get"):
    """The value under `key` in the caller's private memory, `default` if there is none. Errors: `InvalidCall`."""

    key: str
    default: Body = NIL


class MemorySet(Syscall, tag="memory_set"):
    """Keep `value` under `key`. Errors: `InvalidCall`, `NotEncodable`, `LimitExceeded`."""

    key: str
    value: Body


class MemoryDelete(Syscall, tag="memory_delete"):
    """Forget `key`; answers whether it was there. Errors: `InvalidCall`."""

    key: str
    returns: ClassVar[Any] = bool


class MemoryKeys(Syscall, tag="memory_keys"):
    """The keys that begin with `prefix`, in the order of their first `MemorySet`."""

    prefix: str = ""
    returns: ClassVar[Any] = list[str]


class SharedGet(Syscall, tag="shared_get"):
    """The value of a region and its version. Errors: `UnknownRegion`, `InvalidCall`."""

    name: str
    returns: ClassVar[Any] = Versioned


class SharedSet(Syscall, tag="shared_set"):
    """Give a region a new value, making it if need be; answers the new version, higher than any before it.

    With `expected` only if that is the version it has now; 0 stands for a region that does not exist. A region stays
    until it is deleted; one made with `ephemeral` ends with the process that made it. Once it was set with `durable`,
    it stays over a restart of the daemon, and each change of it is answered when it is on disk. Errors:
    `VersionConflict` (`data`: `expected` and `found`), `LimitExceeded`, `Busy`, `NotEncodable`, `InvalidCall`.
    """

    name: str
    value: Body
    expected: Count | None = None
    ephemeral: bool = False
    durable: bool = False
    returns: ClassVar[Any] = int


class SharedWatch(Syscall, tag="shared_watch"):
    """The value and version of a region as soon as its version is higher than `after`; 0 waits for its making, too.

    Changes between two looks are seen as one: the last. Errors: `RegionDeleted`, `TimedOut`, `InvalidCall`.
    """

    name: str
    after: Count
    timeout: Seconds | None = None
    returns: ClassVar[Any] = Versioned


class SharedDelete(Syscall, tag="shared_delete"):
    """Delete a region; whoever watches it gets `RegionDeleted`. Errors: `UnknownRegion`, `InvalidCall`."""

    name: str


class Regions(Syscall, tag="regions"):
    """All shared regions, by name."""

    returns: ClassVar[Any] = list[RegionInfo]


MemoryCalls = (
    MemoryGet | MemorySet | MemoryDelete | MemoryKeys | SharedGet | SharedSet | SharedWatch | SharedDelete | Regions
)
