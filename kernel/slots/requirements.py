"""Checks, before a driver is started, that what it needs is installed and where the model is said to be.

Called in a worker thread by the model runtime: it reads the disk and loads nothing.
"""

from __future__ import annotations

import importlib.util

from ipc.errors import MissingExtra, ModelNotFound
from kernel.slots.model import ModelSpec

LOCAL_PACKAGES = ("torch", "transformers", "safetensors", "gguf", "accelerate")


def check_requirements(name: str, spec: ModelSpec) -> None:
    """Raises `MissingExtra` or `ModelNotFound`, each with what to do."""
    if spec.driver != "transformers":
        return
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
