"""A cache on disk for the results of trials, which run once on a machine and must not differ from start to start.

Used by `weights` and `model_builder`. A file that cannot be read or written never fails a load: the next start repeats
the trial.
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

from kernel.lib.private_files import make_private, open_private

T = TypeVar("T")


def get_or_measure(folder: Path, kind: str, facts: Any, type_: type[T], measure: Callable[[], T]) -> T:
    """The cached value for these `facts`, this machine and this count of threads. If there is none, measure it."""
    value = get(folder, kind, facts, type_)
    if value is None:
        value = measure()
        put(folder, kind, facts, value)
    return value


def get(folder: Path, kind: str, facts: Any, type_: type[T]) -> T | None:
    """The value stored for these `facts`. None if there is none, or if it cannot be read."""
    with suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode(_path(folder, kind, facts).read_bytes(), type=type_)
    return None


def put(folder: Path, kind: str, facts: Any, value: Any) -> None:
    """Store `value` for later starts. An error of the disk is ignored."""
    path = _path(folder, kind, facts)
    unfinished = path.with_suffix(".unfinished")
    with suppress(OSError):
        make_private(folder)
        with open(unfinished, "wb", opener=open_private) as file:
            file.write(msgspec.json.encode(value))
        unfinished.replace(path)


def _path(folder: Path, kind: str, facts: Any) -> Path:
    return folder / f"{kind}-{digest(kind, facts, machine(), torch.get_num_threads())}.json"


def digest(*facts: Any) -> str:
    """A short hash of `facts`."""
    return blake2b(msgspec.json.encode(facts), digest_size=8).hexdigest()


@cache
def machine() -> str:
    """A description of the processor and of torch, which decide the last bits of a result."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = " ".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    except OSError:
        processor = platform.processor()
    return f"{processor} torch {torch.__version__}"
