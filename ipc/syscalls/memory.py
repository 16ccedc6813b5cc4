"""Memory: private keys of one process, and shared regions, which all processes can read and change.

A key or the name of a region has 1 to 512 characters. Sizes are bytes of the encoded value and its key or name.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import msgspec

from ipc.syscalls.base import Body, Count, Seconds, Syscall

NIL = msgspec.Raw(b"\xc0")


class Versioned(NamedTuple):
    """The value and the version of a shared region. Versions grow even if a region is deleted and made again."""

    value: Any
    version: int


class RegionInfo(msgspec.Struct, frozen=True):
    """A shared region. `size` is in bytes, and charged to `owner`.

    `creator`: the pid of the process that made the region, if the region is ephemeral, else 0. `watchers`: threads that
    wait for a change.
    """

    name: str
    version: int
    size: int
    owner: str
    creator: int
    watchers: int


class MemoryGet(Syscall, tag="memory_get"):
    """Answers the value under `key` in the caller's private memory, or `default`. Errors: `InvalidCall`."""

    key: str
    default: Body = NIL


class MemorySet(Syscall, tag="memory_set"):
    """Store `value` under `key` in the caller's private memory.

    Errors: `InvalidCall`, `NotEncodable`, `LimitExceeded`.
    """

    key: str
    value: Body


class MemoryDelete(Syscall, tag="memory_delete"):
    """Delete `key` from the caller's private memory; answers whether it existed. Errors: `InvalidCall`."""

    key: str
    returns: ClassVar[Any] = bool


class MemoryKeys(Syscall, tag="memory_keys"):
    """Answers the caller's keys that begin with `prefix`, in the order in which they were first set."""

    prefix: str = ""
    returns: ClassVar[Any] = list[str]


class SharedGet(Syscall, tag="shared_get"):
    """Answers the value of a region and its version. Errors: `UnknownRegion`, `InvalidCall`.

    A client gets `LimitExceeded` for a value that does not fit into a frame.
    """

    name: str
    returns: ClassVar[Any] = Versioned


class SharedSet(Syscall, tag="shared_set"):
    """Set the value of a region, and make the region if it does not exist; answers its new version.

    With `expected`, this happens only if the region has that version; 0 means that the region must not exist. A region
    lasts until it is deleted. An `ephemeral` region also ends with the process that made it. After a set with
    `durable`, the region survives restarts of the daemon, and each change is answered when it is on disk. Errors:
    `VersionConflict` (`data`: `expected` and `found`), `LimitExceeded`, `Busy` (too many bytes in all regions),
    `NotEncodable`, `InvalidCall` (also for a region that would be both ephemeral and durable).
    """

    name: str
    value: Body
    expected: Count | None = None
    ephemeral: bool = False
    durable: bool = False
    returns: ClassVar[Any] = int


class SharedWatch(Syscall, tag="shared_watch"):
    """Wait until the version of a region is above `after`; answers value and version.

    With `after` 0 the call also waits for a region that does not exist yet. Of several changes between two calls, a
    watcher gets only the last. Errors: `RegionDeleted`, `TimedOut` after `timeout` seconds, `InvalidCall`.
    """

    name: str
    after: Count
    timeout: Seconds | None = None
    returns: ClassVar[Any] = Versioned


class SharedDelete(Syscall, tag="shared_delete"):
    """Delete a region. Its watchers get `RegionDeleted`. Errors: `UnknownRegion`, `InvalidCall`."""

    name: str


class Regions(Syscall, tag="regions"):
    """Answers all shared regions, sorted by name."""

    returns: ClassVar[Any] = list[RegionInfo]


MemoryCalls = (
    MemoryGet | MemorySet | MemoryDelete | MemoryKeys | SharedGet | SharedSet | SharedWatch | SharedDelete | Regions
)
