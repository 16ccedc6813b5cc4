"""Checks the files of a model before heavy imports: whether they are there, and are what their names say.

`__main__` calls `check` with the path that `source.locate` found. It reads the settings, the headers of the weights,
and the first bytes of other files. It never reads weights, and never decides whether the driver can run the model:
`supported` does.
"""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path
from typing import Any

from ipc.errors import ModelLoadFailed, ModelNotFound
from kernel.drivers.transformers import checkpoint
from kernel.drivers.transformers.file_kinds import head_of, settings

MOST_NAMES = 10_000  # files of a folder that are looked at
GGUF_VERSIONS = (2, 3)
# A folder with none of these files has no tokenizer.
TOKENIZERS = (
    "tokenizer.json", "*.model", "*.tiktoken", "vocab.*", "vocab-*", "merges.txt", "tokenizer.pkl", "spm*", "*.bpe",
    "tekken.json",
)  # fmt: skip


def check(source: Path | str) -> dict[str, Any]:
    """Check the files at `source`, the result of `source.locate`, and return the contents of config.json.

    A name on the hub is not checked, and has no such contents here; nor has a GGUF file. Raises `ModelNotFound` or
    `ModelLoadFailed`, which name the file and say what to do.
    """
    if isinstance(source, str):
        return {}
    try:
        if source.is_dir():
            return _check_folder(source)
        _check_gguf(source)
    except PermissionError as error:
        user = os.environ.get("USER") or f"user {os.geteuid()}"
        raise ModelNotFound(
            f"{error.filename or source} cannot be read by {user} ({error.strerror}); change its permissions"
        ) from error
    except OSError as error:
        raise ModelLoadFailed(f"{error.filename or source} cannot be read ({error.strerror or error})") from error
    return {}


def without_config(folder: Path) -> str:
    """Why `folder`, which has no config.json, is no model."""
    names = sorted(path.name for path in islice(folder.iterdir(), MOST_NAMES))
    if not names:
        return f"{folder} is empty; copy the files of the model into it, or correct the path"
    ggufs = [name for name in names if name.endswith(".gguf")]
    if ggufs:
        return f"{folder} holds no config.json; to use its GGUF file, name the file: {folder / ggufs[0]}"
    if checkpoint.ADAPTER in names:
        return f"{folder} holds an adapter, not a whole model; {checkpoint.MERGE}"
    return f"{folder} holds no config.json; name a folder saved by transformers, or a .gguf file"


def folder_hint(path: Path) -> str:
    """Advice for a file that was named in the place of its folder; empty if it is no file of a model's folder."""
    return f"; name its folder: {path.parent}" if (path.parent / "config.json").is_file() else ""


def _check_folder(folder: Path) -> dict[str, Any]:
    configuration = settings(folder / "config.json")
    for optional in ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (folder / optional).is_file():
            settings(folder / optional)
    try:
        files = checkpoint.weight_files(folder)
        if checkpoint.has_headers(files):
            checkpoint.tensors(files)
    except checkpoint.UnfitFiles as error:
        raise ModelLoadFailed(str(error)) from error
    if not any(next(folder.glob(pattern), None) for pattern in TOKENIZERS):
        raise ModelLoadFailed(
            f"{folder} holds no tokenizer; copy tokenizer.json and tokenizer_config.json of the model into the folder"
        )
    tokenizer = folder / "tokenizer.json"
    if tokenizer.is_file() and not head_of(tokenizer).lstrip().startswith(b"{"):
        raise ModelLoadFailed(f"{tokenizer} is not valid JSON; download it again")
    return configuration


def _check_gguf(path: Path) -> None:
    head = head_of(path)
    if head[:4] != b"GGUF":
        raise ModelLoadFailed(f"{path} is not a GGUF file; download it again, or name another file")
    version = int.from_bytes(head[4:8], "little")
    if version not in GGUF_VERSIONS:
        raise ModelLoadFailed(
            f"{path} is a GGUF file of version {version}, and the driver reads versions 2 and 3, little-endian; "
            "convert the model again with a newer llama.cpp"
        )
