"""Checks the files of a model before heavy imports: whether they are there, and are what their names say.

`__main__` calls `check` with the path that `source.locate` found. It reads the settings and the first bytes of the
other files. It never reads weights, and never decides whether the driver can run the model: `supported` does.
"""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from ipc.errors import ModelLoadFailed, ModelNotFound

MAX_SETTINGS = 64 << 20  # bytes of a JSON file of settings, beyond which it is none
MOST_NAMES = 10_000  # files of a folder that are looked at
HEAD = 512  # bytes at the beginning of a file that show its kind
GGUF_VERSIONS = (2, 3)
INDEX = "model.safetensors.index.json"
# A folder with none of these files has no tokenizer.
TOKENIZERS = (
    "tokenizer.json", "*.model", "*.tiktoken", "vocab.*", "vocab-*", "merges.txt", "tokenizer.pkl", "spm*", "*.bpe",
)  # fmt: skip
OTHER_WEIGHTS = ("pytorch_model*.bin", "*.gguf", "*.h5", "*.msgpack", "*.pth", "*.pt", "*.onnx", "*.safetensors")


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
    return {}


def settings(path: Path) -> dict[str, Any]:
    """The JSON object in the file at `path`. Raises `ModelLoadFailed` if the file holds none."""
    with path.open("rb") as file:
        content = file.read(MAX_SETTINGS + 1)
    _check_kind(path, content[:HEAD])
    if len(content) > MAX_SETTINGS:
        raise ModelLoadFailed(f"{path} is larger than {MAX_SETTINGS} bytes, so it holds no settings; replace it")
    try:
        found = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelLoadFailed(f"{path} is not valid JSON ({error}); correct it or download it again") from error
    if not isinstance(found, dict):
        raise ModelLoadFailed(f"{path} holds no JSON object; correct it or download it again")
    return found


def without_config(folder: Path) -> str:
    """Why `folder`, which has no config.json, is no model."""
    names = sorted(path.name for path in islice(folder.iterdir(), MOST_NAMES))
    if not names:
        return f"{folder} is empty; copy the files of the model into it, or correct the path"
    ggufs = [name for name in names if name.endswith(".gguf")]
    if ggufs:
        return f"{folder} holds no config.json; to use its GGUF file, name the file: {folder / ggufs[0]}"
    if "adapter_config.json" in names:
        return f"{folder} holds an adapter, not a whole model; merge it with its base model, and name the merged folder"
    return f"{folder} holds no config.json; name a folder saved by transformers, or a .gguf file"


def folder_hint(path: Path) -> str:
    """Advice for a file that was named in the place of its folder; empty if it is no file of a model's folder."""
    return f"; name its folder: {path.parent}" if (path.parent / "config.json").is_file() else ""


def _check_folder(folder: Path) -> dict[str, Any]:
    configuration = settings(folder / "config.json")
    for optional in ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (folder / optional).is_file():
            settings(folder / optional)
    for path in _weight_files(folder):
        _check_safetensors(path)
    if not any(next(folder.glob(pattern), None) for pattern in TOKENIZERS):
        raise ModelLoadFailed(
            f"{folder} holds no tokenizer; copy tokenizer.json and tokenizer_config.json of the model into the folder"
        )
    tokenizer = folder / "tokenizer.json"
    if tokenizer.is_file():
        with tokenizer.open("rb") as file:
            head = file.read(HEAD)
        _check_kind(tokenizer, head)
        if not head.lstrip().startswith(b"{"):
            raise ModelLoadFailed(f"{tokenizer} is not valid JSON; download it again")
    return configuration


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder that are the model's: those of the index, or the one file, or all."""
    index, whole = folder / INDEX, folder / "model.safetensors"
    if whole.is_file():
        return [whole]
    if index.is_file():
        names = settings(index).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise ModelLoadFailed(f"{index} has no weight_map; download it again")
        files = [folder / name for name in sorted(set(names.values()))]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ModelLoadFailed(f"{folder} lacks {missing[0]}{more}, named in {INDEX}; download the model again")
        return files
    files = sorted(folder.glob("*.safetensors"))
    if not files and not any(folder.glob("pytorch_model*.bin")):
        found = next((path.name for pattern in OTHER_WEIGHTS for path in folder.glob(pattern)), None)
        others = f" ({found} is of another kind)" if found else ""
        raise ModelLoadFailed(f"{folder} holds no weights{others}; copy model.safetensors of the model into the folder")
    return files


def _check_safetensors(path: Path) -> None:
    """Check that the header of a safetensors file fits its size: 8 bytes of length, the header, the tensors."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEAD)
        _check_kind(path, head)
        length = int.from_bytes(head[:8], "little")
        if head[8:9] != b"{" or 8 + length > size:
            raise ModelLoadFailed(f"{path} is not a safetensors file, or it is damaged; download it again")
        file.seek(8)
        header = file.read(length)
    try:
        tensors = msgspec.json.decode(header, type=dict[str, dict[str, Any]])
        tensors.pop("__metadata__", None)
        end = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    except (msgspec.DecodeError, UnicodeDecodeError, LookupError, TypeError) as error:
        raise ModelLoadFailed(f"the header of {path} is damaged ({error}); download the file again") from error
    if 8 + length + end > size:
        missing = 8 + length + end - size
        raise ModelLoadFailed(f"{path} was cut off: its last {missing} bytes are missing; download it again")


def _check_gguf(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(HEAD)
    _check_kind(path, head)
    if head[:4] != b"GGUF":
        raise ModelLoadFailed(f"{path} is not a GGUF file; download it again, or name another file")
    version = int.from_bytes(head[4:8], "little")
    if version not in GGUF_VERSIONS:
        raise ModelLoadFailed(
            f"{path} is a GGUF file of version {version}, and the driver reads versions 2 and 3, little-endian; "
            "convert the model again with a newer llama.cpp"
        )


def _check_kind(path: Path, head: bytes) -> None:
    """Refuse a file that is empty, or one of the texts that a download often leaves in the place of a file."""
    start = head.lstrip().lower()
    if not head:
        raise ModelLoadFailed(f"{path} is empty; download it again")
    if head.startswith(b"version https://git-lfs"):
        raise ModelLoadFailed(f"{path} is only a pointer of Git LFS; run `git lfs pull` in {path.parent}")
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ModelLoadFailed(f"{path} is a web page, not the file of a model; download the file itself")
