"""From the name of a model to its weights and its tokenizer in memory, as transformers loads them.

Called once, by `__main__`, through `load`, which has `assembly` make of them what runs. Every failure is a named error;
nothing is printed.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ipc.errors import LlmosError, ModelLoadFailed, ModelNotFound
from kernel.drivers.protocol import Load
from kernel.drivers.transformers.assembly import Model, assemble
from kernel.drivers.transformers.conversion import converted, fingerprint
from kernel.drivers.transformers.forward import NAME
from kernel.drivers.transformers.measured import digest
from kernel.drivers.transformers.options import Options

LAYERS = {"full_attention", "sliding_attention"}
ROPE_BY_LENGTH = {"dynamic", "longrope"}  # they would make a sequence's numbers depend on its neighbours' lengths


def load(message: Load, source: Path | str, options: Options, report: Callable[[str], None]) -> Model:
    """The model that `message` names, from `source`, where `source.locate` found it; `report` is told each stage.

    Raises `ModelNotFound`, `MissingExtra`, or `ModelLoadFailed` with the cause.
    """
    name, cache = message.model, Path(message.cache)
    try:
        if isinstance(source, Path) and source.suffix == ".gguf":
            source = converted(source, cache, report)
        report("loading weights")
        return _load(name, source, options, message, report)
    except LlmosError:
        raise
    except Exception as error:
        raise ModelLoadFailed(f"cannot load {name} from {source}: {type(error).__name__}: {error}") from error


def _load(name: str, source: Path | str, options: Options, message: Load, report: Callable[[str], None]) -> Model:
    threads = options.threads or len(message.cores)
    if threads:
        torch.set_num_threads(threads)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    # On a CPU the weights are packed from float32; what they are packed to is `assembly`'s choice.
    dtype = torch.float32 if device.type == "cpu" else getattr(torch, options.dtype or "bfloat16")
    try:
        config = AutoConfig.from_pretrained(str(source))
    except OSError as error:
        raise ModelNotFound(f"cannot find {name}, here or on the hub: {error}") from error
    _check_config(config.get_text_config())
    with ThreadPoolExecutor(1) as pool:
        tokenizer = pool.submit(AutoTokenizer.from_pretrained, str(source))
        model = AutoModelForCausalLM.from_pretrained(str(source), config=config, dtype=dtype, attn_implementation=NAME)
        model.eval().to(device)
        report("packing weights")
        return assemble(name, model, tokenizer, options, message, _print_of(source, config))


def _check_config(config: Any) -> None:
    """Refuse what the check after loading is too short to notice."""
    layers = set(getattr(config, "layer_types", None) or ()) - LAYERS
    if layers:
        raise ModelLoadFailed(f"layers of type {sorted(layers)} are not supported; use a model without them")
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = ROPE_BY_LENGTH & {part.get("rope_type") for part in (rope, *rope.values()) if isinstance(part, dict)}
    if kinds:
        raise ModelLoadFailed(f"position embeddings of type {sorted(kinds)} are not supported; use another model")


def _print_of(source: Path | str, config: Any) -> str:
    """What tells these weights from others."""
    files = sorted(source.glob("*.safetensors")) if isinstance(source, Path) else []
    return digest(str(source) if not files else [fingerprint(file) for file in files], config.to_json_string())
