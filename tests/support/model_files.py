"""Writes a tiny model to disk in each of the forms that users have: one file, shards, other names, a backup beside it.

`KINDS` has a function for each form, which returns what a user would name in the configuration. The functions round the
weights of the model to those in the file, so that the model is the reference for any driver that reads the file. They
never use the network.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from tests.support import gguf_files
from tests.support.gguf_files import NotWritable
from tests.support.model_matrix import VOCABULARY

FILE = "model.safetensors"
END = 1  # the id of the tokenizer's end token, as in the configurations of `model_families`
SHARD = "20KB"


def one_file(model: Any, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A folder as transformers saves it."""
    deepcopy(model).to(dtype).save_pretrained(folder)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.to(dtype))
    words = WordLevel({f"w{number}": number for number in range(VOCABULARY)}, unk_token="w0")
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), eos_token=f"w{END}").save_pretrained(folder)
    return folder


def shards(model: Any, folder: Path) -> Path:
    """Several weight files with an index."""
    one_file(model, folder)
    (folder / FILE).unlink()
    model.save_pretrained(folder, max_shard_size=SHARD)
    return folder


def backup(model: Any, folder: Path) -> Path:
    """A second weight file, as a backup, with other weights under the same names."""
    one_file(model, folder)
    other = {name: weight + 1 for name, weight in load_file(folder / FILE).items()}
    save_file(other, folder / "model_backup.safetensors", {"format": "pt"})
    save_file(other, folder / "a_copy.safetensors", {"format": "pt"})
    return folder


def shards_and_leftovers(model: Any, folder: Path) -> Path:
    """Shards with an index, beside shards of another save that no index names."""
    shards(model, folder)
    for number in (1, 2):
        shard = sorted(folder.glob("model-*-of-*.safetensors"))[number]
        other = {name: weight + 1 for name, weight in load_file(shard).items()}
        save_file(other, folder / f"model-0000{number}-of-00099.safetensors", {"format": "pt"})
    return folder


def no_prefix(model: Any, folder: Path) -> Path:
    """Tensors named as in a base model, such as "layers.0.mlp.up_proj.weight", and no head."""
    one_file(model, folder)
    found = load_file(folder / FILE)
    plain = {name.removeprefix("model."): weight for name, weight in found.items() if name != "lm_head.weight"}
    save_file(plain, folder / FILE, {"format": "pt"})
    return folder


def no_head(model: Any, folder: Path) -> Path:
    """The head is missing."""
    one_file(model, folder)
    found = load_file(folder / FILE)
    found.pop("lm_head.weight", None)
    save_file(found, folder / FILE, {"format": "pt"})
    return folder


def no_layer(model: Any, folder: Path) -> Path:
    """A layer lacks one of its matrices."""
    one_file(model, folder)
    found = load_file(folder / FILE)
    usual = "model.layers.1.mlp.down_proj.weight"
    others = sorted(name for name, weight in found.items() if ".1." in name and weight.dim() == 2)
    del found[usual if usual in found else others[-1]]
    save_file(found, folder / FILE, {"format": "pt"})
    return folder


def stored_twice(model: Any, folder: Path) -> Path:
    """A head is stored although the configuration ties it to the embeddings, which some trainers do."""
    if not model.config.get_text_config().tie_word_embeddings:
        raise NotWritable("the model has a head of its own")
    one_file(model, folder)
    found = load_file(folder / FILE)
    found["lm_head.weight"] = found["model.embed_tokens.weight"].clone()
    save_file(found, folder / FILE, {"format": "pt"})
    return folder


def pickled(model: Any, folder: Path) -> Path:
    """The older format of torch."""
    one_file(model, folder)
    torch.save(load_file(folder / FILE), folder / "pytorch_model.bin")
    (folder / FILE).unlink()
    return folder


def gguf(kind: str, model: Any, folder: Path) -> Path:
    """A GGUF file with matrices in the format `kind`."""
    folder.mkdir()
    gguf_files.write(model, folder / "model.gguf", kind)
    return folder / "model.gguf"


Kind = Callable[[Any, Path], Path]
FOLDERS: dict[str, Kind] = {
    "one file": one_file,
    "bfloat16": partial(one_file, dtype=torch.bfloat16),
    "float16": partial(one_file, dtype=torch.float16),
    "shards": shards,
    "a backup beside it": backup,
    "shards and leftovers": shards_and_leftovers,
    "no prefix": no_prefix,
    "no head": no_head,
    "a missing matrix": no_layer,
    "a head stored twice": stored_twice,
    "pickled": pickled,
}
GGUF: dict[str, Kind] = {f"GGUF {kind}": partial(gguf, kind) for kind in gguf_files.FORMATS}
KINDS = FOLDERS | GGUF
