"""Converts a GGUF file to a folder of safetensors, once: the GGUF takes half a minute to load, the folder a second.

`weights` calls it for every GGUF model. The folder appears whole or not at all: it is written under another name while
this process holds a file lock, and then renamed, so neither a crash nor a second driver does harm. The GGUF file is
never changed.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

from ipc.errors import MissingExtra
from kernel.drivers.transformers import supported
from kernel.lib.private_files import make_private, open_private

EDGE = 1 << 20  # bytes at either end of a file that go into its fingerprint

Report = Callable[[str], None]


def converted(gguf: Path, cache: Path, report: Report) -> Path:
    """The folder in `cache` with the weights and the tokenizer of `gguf`; made by a conversion if it is missing."""
    folder = cache / f"{gguf.stem}-{fingerprint(gguf)}"
    if folder.is_dir():
        return folder
    make_private(cache)
    with _lock(folder.with_name(folder.name + ".lock")):
        if not folder.is_dir():
            _convert(gguf, folder, report)
    return folder


def fingerprint(path: Path) -> str:
    """A name for the content of a file: its size, and a hash of its first and last parts.

    The modification time would change with every installation of the same model, and a hash of the whole file would
    take as long as loading it.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        digest = blake2b(file.read(EDGE), digest_size=8)
        file.seek(max(size - EDGE, 0))
        digest.update(file.read(EDGE))
    return f"{size:x}-{digest.hexdigest()}"


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with open(path, "w", opener=open_private) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the operating system releases the lock if this process dies
        yield


def _convert(gguf: Path, folder: Path, report: Report) -> None:
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(f"reading {gguf} needs {package}: pip install 'llmosd[local]'", extra="local")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    supported.check_gguf(gguf)
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    report("converting weights")
    quantized = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # transformers refuses to save a model that it loaded from a GGUF, although the weights are plain by now.
    config = quantized.config
    del config.quantization_config
    with torch.device("meta"):
        plain = type(quantized)(config)
    plain.load_state_dict(quantized.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = quantized.generation_config
    plain.save_pretrained(unfinished)
    report("converting tokenizer")
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(unfinished)
    for path in unfinished.iterdir():
        with path.open("rb") as file:
            os.fsync(file)
    unfinished.rename(folder)
