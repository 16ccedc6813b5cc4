"""What was measured on this machine once, and is kept in the cache: trials whose outcome must not change by the hour.

Used by `weights` and `batch_invariance`. A file that cannot be read or written only means that the trial is made again.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch

T = TypeVar("T")


def remembered(folder: Path, what: str, facts: Any, kind: type[T], measure: Callable[[], T]) -> T:
    """What `measure` gave when it was first called for these `facts` on this machine, with as many threads."""
    value = recalled(folder, what, facts, kind)
    if value is None:
        value = measure()
        remember(folder, what, facts, value)
    return value


def recalled(folder: Path, what: str, facts: Any, kind: type[T]) -> T | None:
    """What was remembered for these `facts`; None if there is nothing, or nothing that can be read."""
    with suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode(_path(folder, what, facts).read_bytes(), type=kind)
    return None


def remember(folder: Path, what: str, facts: Any, value: Any) -> None:
    """Keep `value` for the next start."""
    path = _path(folder, what, facts)
    unfinished = path.with_suffix(".unfinished")
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(msgspec.json.encode(value))
        unfinished.replace(path)


def _path(folder: Path, what: str, facts: Any) -> Path:
    return folder / f"{what}-{digest(what, facts, machine(), torch.get_num_threads())}.json"


def digest(*facts: Any) -> str:
    """A short name for `facts`."""
    return blake2b(msgspec.json.encode(facts), digest_size=8).hexdigest()


@cache
def machine() -> str:
    """What decides about the last bits of a result: the processor and the library."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = " ".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    except OSError:
        processor = platform.processor()
    return f"{processor} torch {torch.__version__}"
