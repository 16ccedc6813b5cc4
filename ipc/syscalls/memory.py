"""Memory: private keys of one process, and shared regions, which all processes can read and change.

A key or the name of a region has 1 to 512 characters. Sizes are bytes of the encoded value and its key or name.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import msgspec

from ipc.syscalls.base import Body, Count, Seconds, Syscall

NIL = msgspec.Raw(b"\xc0")


class Versioned(NamedTuple):
    """The value and the version of a shared region. A region that is deleted and made again gets a higher version."""

    value: Any
    version: int


class RegionInfo(msgspec.Struct, frozen=True):
    """A shared region. `size` is in bytes, and charged to `owner`.

    `creator`: for an ephemeral region the pid of the process that made it, else 0. `watchers`: the number of threads
    that wait for a change.
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
    """Answers the caller's keys that begin with `prefix`, in the order in which they were first set.

    With `start`, it answers one page, without the first `start` keys. Errors: `LimitExceeded` if a client asks for more
    than a page without `start`.
    """

    prefix: str = ""
    start: Count | None = None
    appended: ClassVar[int] = 1
    page: ClassVar[int] = 2_000
    returns: ClassVar[Any] = list[str]


class SharedGet(Syscall, tag="shared_get"):
    """Answers the value of a region and its version. Errors: `UnknownRegion`, `InvalidCall`.

    A client gets `LimitExceeded` for a value that does not fit into a frame.
    """

    name: str
    returns: ClassVar[Any] = Versioned


class SharedSet(Syscall, tag="shared_set"):
    """Set the value of a region, and make the region if it does not exist; answers its new version.

    With `expected`, the call fails unless the region has that version; 0: unless the region does not exist. A region
    lasts until it is deleted. A region that this call makes as `ephemeral` also ends with the calling process. A call
    with `durable` makes the region durable: it survives restarts of the daemon, and each change of the region is
    answered when the change is on disk. Errors:
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

    With `after` 0 the call also waits for a region that does not exist yet. If a region changes several times between
    two calls of a watcher, the watcher gets only the last value. Errors: `RegionDeleted`, `TimedOut` after `timeout`
    seconds, `InvalidCall`.
    """

    name: str
    after: Count
    timeout: Seconds | None = None
    returns: ClassVar[Any] = Versioned


class SharedDelete(Syscall, tag="shared_delete"):
    """Delete a region. Its watchers get `RegionDeleted`. Errors: `UnknownRegion`, `InvalidCall`."""

    name: str


class Regions(Syscall, tag="regions"):
    """Answers the shared regions, sorted by name: one page of those after the name `after`.

    Without `after`, it answers all. Errors: `LimitExceeded` if these are more than a page.
    """

    after: str | None = None
    page: ClassVar[int] = 2_000
    returns: ClassVar[Any] = list[RegionInfo]


MemoryCalls = (
    MemoryGet | MemorySet | MemoryDelete | MemoryKeys | SharedGet | SharedSet | SharedWatch | SharedDelete | Regions
)
