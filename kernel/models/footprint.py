"""What memory the driver of a model takes: measured while it runs, remembered in the cache folder for the next time.

One for each model runtime, read by the residency. A model that was never loaded is taken to be as large as its files.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

KV_FLOOR = 512 << 20  # bytes of keys and values that a model gets at least, unless its longest sequence takes less


class MeasuredSize(msgspec.Struct, frozen=True):
    """What a load took: `size` in bytes of memory without keys and values, and `seconds`."""

    size: int
    seconds: float
    token_bytes: int = 0
    context: int = 0


class MeasuredSizes:
    """What was measured of each model, by a key that says what was loaded. One file, read once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._measured: dict[str, MeasuredSize] = {}
        with contextlib.suppress(OSError, msgspec.DecodeError):
            self._measured = msgspec.json.decode(path.read_bytes(), type=dict[str, MeasuredSize])

    def get(self, key: str) -> MeasuredSize | None:
        return self._measured.get(key)

    def put(self, key: str, measured: MeasuredSize) -> bytes:
        """Note what was measured; the contents that the file is to have now, for `write`."""
        self._measured[key] = measured
        return msgspec.json.format(msgspec.json.encode(self._measured))

    def write(self, contents: bytes) -> None:
        """Replace the file. Blocks on the disk. What cannot be written is measured again next time."""
        draft = self._path.with_suffix(f".{os.getpid()}")
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(contents)
            draft.replace(self._path)


class Footprint:
    """What one model takes of the memory.

    `size`: bytes without keys and values; those of its files (`estimate`) until it was measured. `rss`, `kv_used` and
    `kv_cached` are as of the last look. `kv_memory` is what the driver may use for keys and values now, `kv_most` what
    it may ever use, if that is bound. `elsewhere`: keys and values lie in the memory of a device of its own.
    """

    def __init__(self, measured: MeasuredSize | None) -> None:
        self._measured = measured
        self.estimate = 0
        self.rss = 0
        self.kv_used = 0
        self.kv_cached = 0
        self.kv_memory = 0
        self.kv_most: int | None = None
        self.elsewhere = False

    def loaded(self, measured: MeasuredSize, kv_memory: int, *, most: int | None, elsewhere: bool) -> None:
        """The driver is ready."""
        self._measured = measured
        self.rss = measured.size
        self.kv_used = self.kv_cached = 0
        self.kv_memory, self.kv_most, self.elsewhere = kv_memory, most, elsewhere

    def gone(self) -> None:
        """The driver is no more."""
        self.rss = self.kv_used = self.kv_cached = self.kv_memory = 0
        self.kv_most = None

    @property
    def size(self) -> int:
        return self.estimate if self._measured is None else self._measured.size

    @property
    def load_seconds(self) -> float | None:
        """How long it takes to load, as far as that is known."""
        return None if self._measured is None else self._measured.seconds

    @property
    def token_bytes(self) -> int:
        """Keys and values of one token; 0 if that is not known, or the driver counts none."""
        return 0 if self._measured is None else self._measured.token_bytes

    @property
    def shares(self) -> bool:
        """Whether it takes keys and values from the memory that all drivers share."""
        return not self.elsewhere and (self._measured is None or self._measured.token_bytes > 0)

    @property
    def kv_floor(self) -> int:
        """Bytes of keys and values without which it could not serve its longest sequence, or many."""
        if self._measured is None or not self.shares:
            return 0
        return min(self._measured.token_bytes * self._measured.context, KV_FLOOR)

    @property
    def kv_least(self) -> int:
        """Bytes of keys and values that it uses, or cannot do without if that is more."""
        return max(self.kv_used, self.kv_floor) if self.shares else 0

    @property
    def body(self) -> int:
        """What it takes besides keys and values: at least its size, and more if more was measured."""
        return max(self.size, self.rss - (self.kv_used + self.kv_cached if self.shares else 0))

    @property
    def least(self) -> int:
        """What it takes if it gets no more keys and values than it has to."""
        return self.body + self.kv_least

    @property
    def most(self) -> int:
        """What it takes if it uses all that it may."""
        return self.size + (self.kv_memory if self.shares else 0)
