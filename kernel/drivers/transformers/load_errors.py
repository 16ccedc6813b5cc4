"""Says in one sentence why a library could not load a model, and what to do.

`weights` calls it for every error that is no `LlmosError`. The libraries write for programmers: they list all classes,
advise arguments that nobody can pass here, or name only a key. This module never hides an error that it does not know.
"""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from pathlib import Path

from ipc.errors import LlmosError
from kernel.drivers.transformers.file_kinds import settings

MAX_LENGTH = 400  # characters of a library's own words
CUSTOM_CODE = (
    "it needs Python code from its own folder, and llmosd never runs such code; use a model of a family that "
    "transformers includes"
)
MEMORY = "there is not enough memory; free some, choose a smaller dtype or a smaller model"

# The words of a library, and what they mean. `{0}` stands for the first group.
KNOWN = [
    (r"GGUF model with architecture (\S+) is not supported", "transformers {version} does not read GGUF files of the "
     "architecture {0}; use the model's folder of safetensors, or a model of another family"),
    (r"ggml type (\S+?),? ", "transformers {version} does not read tensors of the ggml type {0}; use a file with "
     "another quantization, such as Q8_0 or Q4_K_M"),
    (r"Unknown gguf model_type: (\S+)", "the package gguf has no names for the tensors of the family {0}; use the "
     "model's folder of safetensors, or another GGUF file of it"),
    (r"Unrecognized configuration class .*\.(\w+)Config'>", "models of the family {0} do not generate text from text; "
     "use a causal language model"),
    (r"custom code|trust_remote_code", CUSTOM_CODE),
    (r"backend tokenizer", "its folder has no tokenizer.json, and its other tokenizer files cannot be read; copy "
     "tokenizer.json of the model into the folder, or pip install sentencepiece tiktoken"),
    (r"^KeyError: 'llmosd'$", "its attention is part of its own code, so the driver cannot replace it; use a model of "
     "another family"),
    (r"^KeyError: (.*)", "its config.json lacks {0}, or has it as a value that transformers does not know; correct it"),
    (r"^UnpicklingError", "a .bin file of its folder is damaged, or holds more than weights; use safetensors files"),
    (r"MemoryError|can't allocate memory|CUDA out of memory|Cannot allocate memory", MEMORY),
    (r"^ImportError: (.*)", "it needs a package that is not installed ({0}); install it, or use weights without "
     "quantization"),
]  # fmt: skip


def explain(error: BaseException, folder: Path | None = None) -> str:
    """One sentence about `error`, which occurred at the load of the model in `folder`."""
    if isinstance(error, json.JSONDecodeError) and folder is not None and folder.is_dir():
        try:
            for path in sorted(folder.glob("*.json")):
                settings(path)
        except LlmosError as broken:
            return broken.message
    text = one_line(f"{type(error).__name__}: {error}")
    for pattern, meaning in KNOWN:
        found = re.search(pattern, text)
        if found:
            group = cut(found[1], 160) if found.re.groups else ""
            return meaning.format(group, version=version("transformers"))
    return cut(text, MAX_LENGTH)


def one_line(text: str) -> str:
    """`text` on one line, without the colours of a terminal."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())


def cut(text: str, length: int) -> str:
    """`text`; if it is longer than `length` characters, its first sentences, or its first words and an ellipsis."""
    if len(text) <= length:
        return text.rstrip(". ")
    head = text[:length]
    end = max(head.rfind(mark) for mark in (". ", "; "))
    return head[:end] if end > length // 4 else head.rpartition(" ")[0] + " ..."
