"""A cache on disk for what a start learns: results of trials, manifests of models, digests of files.

Used by `weights`, `model_builder` and `model_files`. An entry's key is a hash of all facts that the entry depends on;
the README has the table. A file that cannot be read or written never fails a load: the next start repeats the work.
"""

from __future__ import annotations

import os
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

HERE = Path(__file__).parent
# Variables of the environment by which the libraries under torch choose other kernels.
CHOOSERS = ("ATEN_", "CUBLAS_", "DNNL_", "FBGEMM_", "KMP_", "MKL_", "NVIDIA_", "OMP_", "ONEDNN_", "OPENBLAS_", "TORCH_")
PROCESSOR = ("model name", "flags", "Features", "cache size")  # lines of /proc/cpuinfo


def get_or_measure(folder: Path, kind: str, facts: Any, type_: type[T], measure: Callable[[], T], *modules: str) -> T:
    """The cached value for these `facts`, this machine, this count of threads, and the code of `modules`.

    If there is none, measure it.
    """
    key = [facts, machine(), torch.get_num_threads(), code(*modules) if modules else ""]
    value = get(folder, kind, key, type_)
    if value is None:
        value = measure()
        put(folder, kind, key, value)
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
    return folder / f"{kind}-{digest(kind, facts)}.json"


def digest(*facts: Any) -> str:
    """A short hash of `facts`."""
    return blake2b(msgspec.json.encode(facts), digest_size=8).hexdigest()


@cache
def code(*modules: str) -> str:
    """A hash of the source text of these modules of the driver; of the whole driver if none is named.

    An entry depends on the code that computed it, which may change while the version of llmosd stays the same.
    """
    names = [f"{module}.py" for module in modules] or sorted(path.name for path in HERE.glob("*.py"))
    return digest([(name, (HERE / name).read_text()) for name in names])


@cache
def machine() -> str:
    """A description of the processor, of torch and of its settings, which decide the last bits of a result."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = " ".join(sorted({line for line in lines if line.startswith(PROCESSOR)}))
    except OSError:
        processor = platform.processor()
    settings = sorted(f"{name}={value}" for name, value in os.environ.items() if name.startswith(CHOOSERS))
    kernels = torch.backends.cpu.get_cpu_capability()
    return f"{processor} torch {torch.__version__} {kernels} {' '.join(settings)}"


def device_name(device: torch.device) -> str:
    """The name of `device`, and the kind of a GPU."""
    return f"{device} {torch.cuda.get_device_name(device)}" if device.type == "cuda" else str(device)
