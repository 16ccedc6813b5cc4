"""Decides whether a GGUF file can be converted without loss: whether transformers reads all that decides its answers.

transformers leaves out tensors and metadata of a GGUF for which it has no place, and says so nowhere. `conversion`
calls `refuse_incomplete` and `complete` before a load, and `refuse_unread` after it. This module never reads a tensor,
except the few numbers by which Llama 3 scales its position embeddings.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

from kernel.drivers.transformers.checkpoint import UnfitFiles, some
from kernel.drivers.transformers.gguf_header import GGUFHeader
from kernel.drivers.transformers.gguf_sizes import complete_sizes

# What each kind of tokenizer needs besides its tokens.
TOKENIZER_PARTS = {"gpt2": "merges", "llama": "scores"}
ROPE_FACTORS = "rope_freqs.weight"
# The settings of Llama 3.1, 3.2 and 3.3, which a GGUF does not have: it has the factors that follow from them.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
FIXED_HEADS = {"qwen3", "qwen3_moe"}  # models for which transformers takes one size of a head, whatever the file says
FULL = "full_attention"  # the layers whose positions are scaled, where others attend to a window
SPECULATION = ".nextn."  # in the names of tensors that predict several tokens at once, only for speed


def refuse_incomplete(gguf: Path, header: GGUFHeader) -> None:
    """Raise `UnfitFiles` if the file is a part of a model, or lacks its tokenizer."""
    fields = header.fields
    if fields.get("split.count", 1) > 1:
        raise UnfitFiles(
            f"{gguf} is one of {fields['split.count']} parts of a model; join them with `llama-gguf-split --merge`, "
            f"and name the result"
        )
    if "general.architecture" not in fields:
        raise UnfitFiles(f"{gguf} does not say of which architecture it is (general.architecture)")
    kind = fields.get("tokenizer.ggml.model")
    needed = ["model", "tokens", *([TOKENIZER_PARTS[kind]] if kind in TOKENIZER_PARTS else [])]
    if fields.get("tokenizer.chat_template"):
        needed.append("token_type")  # it says which tokens of the template are control tokens
    missing = [f"tokenizer.ggml.{part}" for part in needed if not fields.get(f"tokenizer.ggml.{part}")]
    if missing:
        raise UnfitFiles(f"{gguf} lacks a part of its tokenizer: {some(missing)}; convert the model again")


def refuse_unread(gguf: Path, header: GGUFHeader, model: Any) -> None:
    """Raise `UnfitFiles` if the file has tensors that transformers did not read into `model`."""
    from gguf.constants import MODEL_ARCH_NAMES
    from gguf.tensor_mapping import get_tensor_name_map

    architecture = header.fields["general.architecture"]
    kind = next((kind for kind, name in MODEL_ARCH_NAMES.items() if name == architecture), None)
    if kind is None:
        return
    names = get_tensor_name_map(kind, model.config.get_text_config().num_hidden_layers)
    read = {tensor: names.get_name(tensor, (".weight", ".bias")) for tensor in model.state_dict()}
    # transformers joins or renames tensors of some architectures, so that their names say nothing.
    if not all(read[tensor] for tensor, _ in model.named_parameters()):
        return
    unread = [
        name
        for name in header.tensors
        if name not in read.values() and name != ROPE_FACTORS and SPECULATION not in name
    ]
    if unread:
        raise UnfitFiles(
            f"{len(unread)} tensors of {gguf} have no place in a {type(model).__name__} as its "
            f"metadata describe it: {some(unread)}; convert the model again, or use another copy of it"
        )


def complete(gguf: Path, header: GGUFHeader, config: Any) -> None:
    """Set in `config`, as transformers reads it from the file, what it leaves out: how the file scales positions.

    For the Qwen3 models, it also leaves out the size of a head. Raises `UnfitFiles` for a way of scaling that is
    not supported.
    """
    size = header.fields.get(f"{header.fields['general.architecture']}.attention.key_length")
    if size and config.model_type in FIXED_HEADS:
        config.head_dim = size
    complete_sizes(gguf, header.fields, config)
    _scale_positions(gguf, header, config)


def _scale_positions(gguf: Path, header: GGUFHeader, config: Any) -> None:
    prefix = f"{header.fields['general.architecture']}.rope."
    parameters = dict(getattr(config, "rope_parameters", None) or {})
    rope = dict(parameters[FULL]) if FULL in parameters else parameters
    if rope.get("rope_type", "default") != "default":
        return  # transformers has read it
    scaling = {
        key.removeprefix(prefix + "scaling."): value
        for key, value in header.fields.items()
        if key.startswith(prefix + "scaling.")
    }
    kind = scaling.pop("type", "none")
    scaling.pop("finetuned", None)
    factor = scaling.pop("factor", header.fields.get(prefix + "scale_linear"))
    original = scaling.pop("original_context_length", None)
    if ROPE_FACTORS in header.tensors:
        rope |= _as_llama3(gguf, header, rope)
    elif kind == "linear" and factor:
        rope |= {"rope_type": "linear", "factor": float(factor)}
    elif kind == "yarn" and factor and original and not scaling:
        rope |= {"rope_type": "yarn", "factor": float(factor), "original_max_position_embeddings": int(original)}
    elif kind != "none" and factor != 1:
        raise UnfitFiles(
            f"{gguf} scales position embeddings in a way that is not supported ({kind} with "
            f"{some(sorted(scaling)) or 'no other settings'}); use another model, or a folder saved by transformers"
        )
    else:
        return
    config.rope_parameters = parameters | {FULL: rope} if FULL in parameters else rope


def _as_llama3(gguf: Path, header: GGUFHeader, rope: dict[str, Any]) -> dict[str, Any]:
    """The settings of transformers that give the factors in the file."""
    tensor = header.tensors[ROPE_FACTORS]
    count = math.prod(tensor.shape)
    with gguf.open("rb") as file:
        file.seek(header.data + tensor.offset)
        factors = struct.unpack(f"<{count}f", file.read(4 * count)) if tensor.kind == 0 else ()
    factor = max(factors, default=0.0)
    expected = [_llama3_factor(pair / count, float(rope.get("rope_theta", 1e4)), factor) for pair in range(count)]
    if not factors or any(not math.isclose(*pair, rel_tol=1e-3) for pair in zip(factors, expected, strict=True)):
        raise UnfitFiles(
            f"the {ROPE_FACTORS} of {gguf} scales position embeddings in another way than Llama 3; use a "
            f"folder saved by transformers"
        )
    return {"rope_type": "llama3", "factor": factor, **LLAMA3}


def _llama3_factor(place: float, theta: float, factor: float) -> float:
    """The factor of the pair of a head at `place`, between 0 and 1."""
    turns = LLAMA3["original_max_position_embeddings"] / (2 * math.pi * theta**place)  # in the original context
    low, high = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
    if not factor or turns < low:
        return factor
    if turns > high:
        return 1.0
    smooth = (turns - low) / (high - low)
    return float(1 / ((1 - smooth) / factor + smooth))
