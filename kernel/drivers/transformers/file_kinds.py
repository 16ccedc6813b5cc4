"""Reads what a file of a model is from its first bytes, and the JSON files of settings.

`file_checks`, `checkpoint` and `gguf_header` call it, so that a failed download has one refusal wherever it is
found. It never reads weights, and imports nothing heavy.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ipc.errors import ModelLoadFailed

MAX_SETTINGS = 64 << 20  # bytes of a JSON file of settings, beyond which it is none
HEAD = 512  # bytes at the beginning of a file that show its kind


def head_of(path: Path) -> bytes:
    """The first bytes of the file at `path`.

    Raises `ModelLoadFailed` if it is empty, or one of the texts that a download often leaves in the place of a file.
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
    _refuse_leftover(path, head)
    return head


def settings(path: Path) -> dict[str, Any]:
    """The JSON object in the file at `path`. Raises `ModelLoadFailed` if the file holds none.

    Like transformers, it accepts Infinity, NaN and halves of surrogate pairs, which are no JSON but occur in models.
    """
    with path.open("rb") as file:
        content = file.read(MAX_SETTINGS + 1)
    _refuse_leftover(path, content[:HEAD])
    if len(content) > MAX_SETTINGS:
        raise ModelLoadFailed(f"{path} is larger than {MAX_SETTINGS} bytes, so it holds no settings; replace it")
    try:
        found = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise ModelLoadFailed(f"{path} is not valid JSON ({error}); correct it or download it again") from error
    if not isinstance(found, dict):
        raise ModelLoadFailed(f"{path} holds no JSON object; correct it or download it again")
    return found


def _refuse_leftover(path: Path, head: bytes) -> None:
    start = head.lstrip().lower()
    if not head:
        raise ModelLoadFailed(f"{path} is empty; download it again")
    if head.startswith(b"version https://git-lfs"):
        raise ModelLoadFailed(f"{path} is only a pointer of Git LFS; run `git lfs pull` in {path.parent}")
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ModelLoadFailed(f"{path} is a web page, not the file of a model; download the file itself")
