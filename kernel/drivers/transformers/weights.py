"""From the message `Load` to a model that can run: weights, tokenizer, memory for keys and values.

Called once, by `__main__`. Every failure is a named error; nothing is printed.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ipc.errors import LlmosError, ModelLoadFailed, ModelNotFound
from kernel.drivers.transformers.attention import NAME
from kernel.drivers.transformers.conversion import converted
from kernel.drivers.transformers.forward import PackedForward, check
from kernel.drivers.transformers.kv import KVMemory
from kernel.drivers.transformers.options import Options
from kernel.drivers.transformers.tokenizer import Tokenizer, end_ids

SHARE = 0.5  # of the memory that is free after loading, for keys and values
LAYERS = {"full_attention", "sliding_attention"}
ROPE_BY_LENGTH = {"dynamic", "longrope"}  # they would make a sequence's numbers depend on its neighbours' lengths


class Model(NamedTuple):
    """A model that is ready to run. `facts` are for people."""

    forward: PackedForward
    tokenizer: Tokenizer
    memory: KVMemory
    context: int
    device: torch.device
    facts: dict[str, Any]


def load(name: str, source: Path | str, options: Options, cache: Path, report: Callable[[str], None]) -> Model:
    """Load the model `name` from `source`, where `source.locate` found it, calling `report` with each stage.

    Raises `ModelNotFound`, `MissingExtra`, or `ModelLoadFailed` with the cause.
    """
    try:
        if isinstance(source, Path) and source.suffix == ".gguf":
            source = converted(source, cache, report)
        report("loading weights")
        return _load(name, str(source), options)
    except LlmosError:
        raise
    except Exception as error:
        raise ModelLoadFailed(f"cannot load {name} from {source}: {type(error).__name__}: {error}") from error


def _load(name: str, source: str, options: Options) -> Model:
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = getattr(torch, options.dtype or ("float32" if device.type == "cpu" else "bfloat16"))
    try:
        config = AutoConfig.from_pretrained(source)
    except OSError as error:
        raise ModelNotFound(f"cannot find {name}, here or on the hub: {error}") from error
    _check_config(config.get_text_config())
    with ThreadPoolExecutor(1) as pool:
        tokenizer = pool.submit(AutoTokenizer.from_pretrained, source)
        model = AutoModelForCausalLM.from_pretrained(source, config=config, dtype=dtype, attn_implementation=NAME)
        model.eval().to(device)
        hf = tokenizer.result()
    text_config = model.config.get_text_config()
    memory = KVMemory(text_config, dtype, device, options.kv_memory or int(SHARE * _free_memory(device)))
    try:
        check(model, memory)
    except Exception as error:
        raise ModelLoadFailed(
            f"{name} ({type(model).__name__}) cannot run in packed steps: {error}; use another model"
        ) from error
    facts = {
        "dtype": str(dtype).removeprefix("torch."),
        "device": str(device),
        "attention": NAME,
        "parameters": model.num_parameters(),
        "vocabulary": text_config.vocab_size,
        "threads": torch.get_num_threads(),
        "kv_bytes_per_token": memory.bytes_per_token,
        "kv_budget": memory.budget,
    }
    context = text_config.max_position_embeddings
    return Model(PackedForward(model), Tokenizer(hf, end_ids(hf, model), name), memory, context, device, facts)


def _check_config(config: Any) -> None:
    """Refuse what the check after loading is too short to notice."""
    layers = set(getattr(config, "layer_types", None) or ()) - LAYERS
    if layers:
        raise ModelLoadFailed(f"layers of type {sorted(layers)} are not supported; use a model without them")
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = ROPE_BY_LENGTH & {part.get("rope_type") for part in (rope, *rope.values()) if isinstance(part, dict)}
    if kinds:
        raise ModelLoadFailed(f"position embeddings of type {sorted(kinds)} are not supported; use another model")


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
