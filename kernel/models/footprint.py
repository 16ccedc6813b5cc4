"""The memory that the driver of a model takes. The size at the last load is stored in the cache folder.

Each model runtime has one `Footprint`; the residency and the memory balancer read it. A model that was never loaded is
assumed to be as large as its files. A `Footprint` never measures anything itself.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from kernel.lib.private_files import make_private, open_private

MOST_SIZES = 1000  # models whose sizes are stored
MAX_KV_FLOOR = 512 << 20  # bytes; the largest `kv_floor`


class MeasuredSize(msgspec.Struct, frozen=True):
    """The cost of a load: `size` in bytes without KV memory, and `seconds`.

    `token_bytes` is the KV memory of one token, `context` the most tokens that the model allows in a sequence. `files`:
    the bytes of the model's files at that time; a measurement counts only for files of this size.
    """

    size: int
    seconds: float
    token_bytes: int = 0
    context: int = 0
    files: int = -1


class MeasuredSizes:
    """The sizes of the models that were measured last, keyed by driver, path and options. One file, read once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._measured: dict[str, MeasuredSize] = {}
        with contextlib.suppress(OSError, msgspec.DecodeError):
            self._measured = msgspec.json.decode(path.read_bytes(), type=dict[str, MeasuredSize])

    def get(self, key: str) -> MeasuredSize | None:
        return self._measured.get(key)

    def put(self, key: str, measured: MeasuredSize) -> bytes:
        """Store a measurement; returns the new contents of the file, for `write`."""
        self._measured.pop(key, None)
        self._measured[key] = measured
        while len(self._measured) > MOST_SIZES:
            del self._measured[next(iter(self._measured))]
        return msgspec.json.format(msgspec.json.encode(self._measured))

    def write(self, contents: bytes) -> None:
        """Replace the file. Blocks on the disk. An error is ignored: the model is measured again at its next load."""
        draft = self._path.with_suffix(f".{os.getpid()}")
        with contextlib.suppress(OSError):
            make_private(self._path.parent)
            with open(draft, "wb", opener=open_private) as file:
                file.write(contents)
            draft.replace(self._path)


class Footprint:
    """The memory of one model, in bytes.

    `size` excludes KV memory; it is the size of the files (`estimate`) until a load was measured. After the load a
    driver grows, as it allocates memory for its first steps; what it grew by is planned for at its next load, so that
    models are not loaded beside each other again and again to find out. `rss`: memory of the driver process, by the
    last sample of the machine. `kv_used`: KV memory of sequences, and `kv_cached`: of prefixes
    retained for reuse, by the last report of the driver. `kv_memory`: the present bound of `kv_used + kv_cached`; the
    kernel never sets it above `kv_limit` (None: no bound). `kv_on_device`: the KV cache is in a GPU's memory, not in
    the machine's.
    """

    def __init__(self, measured: MeasuredSize | None) -> None:
        self._measured = measured
        self.estimate = 0
        self.rss = 0
        self._body: int | None = None  # memory besides the KV cache by the last sample; None before the first one
        self._growth = 0  # bytes by which `_body` exceeded `size` at the end of the last driver
        self.kv_used = 0
        self.kv_cached = 0
        self.kv_memory = 0
        self.kv_limit: int | None = None
        self.kv_on_device = False

    def files_found(self, size: int) -> None:
        """The model's files have `size` bytes. A measurement of files of another size does not count."""
        self.estimate = size
        if self._measured is not None and self._measured.files != size:
            self._measured = None

    def loaded(self, measured: MeasuredSize, kv_memory: int, *, kv_limit: int | None, kv_on_device: bool) -> None:
        """The driver has loaded the model."""
        self._measured = measured
        self.rss = measured.size
        self._body = None
        self.kv_used = self.kv_cached = 0
        self.kv_memory, self.kv_limit, self.kv_on_device = kv_memory, kv_limit, kv_on_device

    def sampled(self, rss: int) -> None:
        """The driver process takes `rss` bytes."""
        self.rss = rss
        self._body = rss - (self.kv_used + self.kv_cached if self.uses_shared_memory else 0)

    def driver_ended(self) -> None:
        """The driver has ended, and its memory is free."""
        if self._body is not None and self._measured is not None:
            self._growth = max(self._body - self._measured.size, 0)
        self._body = None
        self.rss = self.kv_used = self.kv_cached = self.kv_memory = 0
        self.kv_limit = None

    @property
    def size(self) -> int:
        """Bytes without KV memory, as measured or estimated."""
        return self.estimate if self._measured is None else self._measured.size

    @property
    def load_seconds(self) -> float | None:
        """How long the last load took; None if the model was never loaded."""
        return None if self._measured is None else self._measured.seconds

    @property
    def token_bytes(self) -> int:
        """KV memory of one token; 0 if unknown, or if the driver reports none."""
        return 0 if self._measured is None else self._measured.token_bytes

    @property
    def uses_shared_memory(self) -> bool:
        """Whether its KV cache is in the memory that all drivers share."""
        return not self.kv_on_device and (self._measured is None or self._measured.token_bytes > 0)

    @property
    def kv_floor(self) -> int:
        """The KV memory that the model gets at least: enough for one sequence of full length, up to `MAX_KV_FLOOR`."""
        if self._measured is None or not self.uses_shared_memory:
            return 0
        return min(self._measured.token_bytes * self._measured.context, MAX_KV_FLOOR)

    @property
    def kv_minimum(self) -> int:
        """The least KV memory to plan for: the larger of `kv_used` and `kv_floor`."""
        return max(self.kv_used, self.kv_floor) if self.uses_shared_memory else 0

    @property
    def spare_kv(self) -> int:
        """The part of `kv_used` that the driver can do without, when its sequences are swapped out."""
        return self.kv_minimum - self.kv_floor

    @property
    def without_kv(self) -> int:
        """Memory besides the KV cache: `size` and its growth, or what the last sample shows if that is more."""
        return max(self.size + self._growth, self._body or 0)

    @property
    def minimum(self) -> int:
        """The memory that the driver takes if its KV memory is only `kv_minimum`."""
        return self.without_kv + self.kv_minimum

    @property
    def maximum(self) -> int:
        """The memory that the driver takes if it uses all of its KV memory.

        The resource manager kills a driver that takes more than this plus a margin, as one that leaks memory.
        """
        return self.size + (self.kv_memory if self.uses_shared_memory else 0)
