"""Converts a GGUF file to a folder of safetensors, once: the GGUF takes half a minute to load, the folder a second.

`weights` calls it for every GGUF model. The folder appears whole or not at all: it is written under another name while
this process holds a file lock, and then renamed, so neither a crash nor a second driver does harm. The GGUF file is
never changed.
"""

from __future__ import annotations

import fcntl
import glob
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

from ipc.errors import MissingExtra, ModelLoadFailed
from kernel.drivers.transformers import gguf_check, supported
from kernel.drivers.transformers.gguf_header import read_header, refuse_truncated
from kernel.drivers.transformers.loaded_tensors import refuse_misfits
from kernel.drivers.transformers.model_files import ModelFiles
from kernel.drivers.transformers.tuning_cache import digest
from kernel.lib.private_files import make_private, open_private

FORMAT = 2  # of the converted folder; a change of `_convert` increases it
ORIGIN = "converted_from"  # a file in the folder, with the path of the GGUF file
PACKAGES = ("transformers", "gguf")  # whose versions decide the result

Report = Callable[[str], None]


def converted(gguf: Path, cache: Path, report: Report) -> Path:
    """The folder in `cache` with the weights and the tokenizer of `gguf`; made by a conversion if it is missing."""
    files = ModelFiles(gguf, cache, report)
    key = digest(files.digest, FORMAT, [_version(package) for package in PACKAGES])
    folder = cache / f"{gguf.stem}-{key}"
    if folder.is_dir():
        return folder
    make_private(cache)
    with _lock(folder.with_name(folder.name + ".lock")):
        if not folder.is_dir():
            _convert(gguf, folder, report, files)
            _remove_earlier(gguf, folder)
    return folder


def _remove_earlier(gguf: Path, folder: Path) -> None:
    """Remove the folders of earlier contents of `gguf`, which can be several times as large as the file."""
    origin = str(gguf.resolve())
    with suppress(OSError, UnicodeDecodeError):
        (folder / ORIGIN).write_text(origin)
        for other in folder.parent.glob(f"{glob.escape(gguf.stem)}-*/{ORIGIN}"):
            if other.parent != folder and other.read_text() == origin:
                shutil.rmtree(other.parent, ignore_errors=True)


def _version(package: str) -> str:
    return version(package) if importlib.util.find_spec(package) is not None else ""


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with open(path, "w", opener=open_private) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the operating system releases the lock if this process dies
        yield


def _convert(gguf: Path, folder: Path, report: Report, files: ModelFiles) -> None:
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(f"reading {gguf} needs {package}: pip install 'llmosd[local]'", extra="local")
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    report("converting weights")
    header = read_header(gguf)
    refuse_truncated(gguf, header)
    gguf_check.refuse_incomplete(gguf, header)
    supported.check_gguf(gguf, header.fields)
    config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    gguf_check.complete(gguf, header, config)
    quantized, info = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        config=config,
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are in `info`
    )
    refuse_misfits(gguf, quantized, info)
    gguf_check.refuse_unread(gguf, header, quantized)
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
    if files.changed:
        raise ModelLoadFailed(f"{gguf} changed while it was converted; load it again")
    unfinished.rename(folder)
