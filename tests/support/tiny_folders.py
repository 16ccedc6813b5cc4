"""Folders of tiny models as transformers saves them, and loads from them, for tests of the driver's loader."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny import build

torch = pytest.importorskip("torch", reason="the driver runs torch models (extra `local`)")

from safetensors.torch import load_file, save_file  # noqa: E402

from kernel.drivers.protocol import Load  # noqa: E402
from kernel.drivers.transformers import weights  # noqa: E402
from kernel.drivers.transformers.attention import Span  # noqa: E402
from kernel.drivers.transformers.model_builder import Model  # noqa: E402
from kernel.drivers.transformers.options import Options  # noqa: E402

IDS = [5, 3, 11, 2, 7]
WHOLE = "model.safetensors"

Tensors = dict[str, Any]


def save_tokenizer(folder: Path) -> None:
    """A tokenizer of words, "w0" to "w96", of which "w5" ends a text."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = WordLevel({f"w{number}": number for number in range(97)}, unk_token="w0")
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), eos_token="w5").save_pretrained(folder)


def save(folder: Path, name: str = "Llama", max_shard_size: str = "1GB", **changes: Any) -> Any:
    """Save a tiny model of the class `name`ForCausalLM in `folder`, with a tokenizer if there is none."""
    if not (folder / "tokenizer.json").exists():
        save_tokenizer(folder)
    model = build(name, **changes)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return model


def write(tensors: Tensors, file: Path) -> None:
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, file, metadata={"format": "pt"})


def edit(folder: Path, change: Callable[[Tensors], Tensors], file: str = WHOLE) -> None:
    """Replace the tensors in a file of `folder` by what `change` makes of them."""
    write(change(load_file(folder / file)), folder / file)


def without(*parts: str) -> Callable[[Tensors], Tensors]:
    """An edit that removes the tensors with one of `parts` in their names."""
    return lambda tensors: {name: it for name, it in tensors.items() if not any(part in name for part in parts)}


def configure(folder: Path, **changes: Any) -> None:
    """Change fields of the folder's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def load(source: Path) -> Model:
    """Load `source` as the driver does, with a cache beside it, but without the trials of safe sizes."""
    message = Load("tiny", str(source.parent / "cache"), 50)
    options = Options(dtype="float32", kv_memory=10**7, deterministic=False)
    return weights.load(message, source, options, lambda stage: None)


def logits(model: Model, ids: list[int] | None = None) -> Any:
    """The logits after the last of `ids`."""
    ids = ids or IDS
    slab = model.memory.allocate(len(ids))
    return model.forward([Span(slab, ids)]).logits[0]


def own_logits(folder: Path, ids: list[int] | None = None, **options: Any) -> Any:
    """The logits that transformers' own model in `folder` computes."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32, **options).eval()
    with torch.inference_mode():
        return model(torch.tensor([ids or IDS])).logits[0, -1]


def close(one: Any, other: Any) -> bool:
    """Whether two logits differ only by rounding."""
    return bool((one - other).abs().max() <= 1e-4 * other.abs().max())
