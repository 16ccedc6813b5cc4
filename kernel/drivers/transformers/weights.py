"""From the name of a model to its weights and its tokenizer in memory.

Called once, by `__main__`, through `load`, which has `model_builder` make of them what runs. transformers loads a model
the first time; if the decoder can stand for it, its outline is kept, and later the files of weights are read as they
are. Every failure is a named error; nothing is printed.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import load_file

from ipc.errors import LlmosError, ModelLoadFailed, ModelNotFound
from kernel.drivers.protocol import Load
from kernel.drivers.transformers.conversion import converted, fingerprint
from kernel.drivers.transformers.model_builder import LoadedModel, Model, assemble
from kernel.drivers.transformers.model_manifest import ModelManifest, outline
from kernel.drivers.transformers.options import Options
from kernel.drivers.transformers.tuning_cache import digest, recalled, remember

if find_spec("transformers") is None:
    raise ImportError("no module named transformers")

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
    # On a CPU the weights are packed from float32; what they are packed to is `model_builder`'s choice.
    dtype = torch.float32 if device.type == "cpu" else getattr(torch, options.dtype or "bfloat16")
    cache, facts = Path(message.cache), _facts(source, options, device)
    known = recalled(cache, "outline", facts, LoadCache)
    if known is None:
        loaded = _from_transformers(name, source, device, dtype)
    else:
        loaded = LoadedModel(known.outline, _read(source, device, dtype), None, _digest(source))
    with ThreadPoolExecutor(1) as pool:  # in which transformers is imported, if it was not yet
        tokenizer = pool.submit(_tokenizer, str(source), known is not None and known.plain_tokenizer)
        report("packing weights")
        model = assemble(name, loaded, tokenizer, options, message)
    if known is None and loaded.outline.lean and _files(source):
        remember(cache, "outline", facts, LoadCache(loaded.outline, _is_plain(tokenizer.result())))
    return model


class LoadCache(msgspec.Struct, frozen=True):
    """What a start finds out for the next. `plain_tokenizer`: that its class is the one which all of it is data for."""

    outline: ModelManifest
    plain_tokenizer: bool


def _is_plain(tokenizer: Any) -> bool:
    from transformers import PreTrainedTokenizerFast

    return type(tokenizer) is PreTrainedTokenizerFast


def _tokenizer(source: str, plain: bool) -> Any:
    """To look for its class, and then to load the configuration of the model, takes longer than to load it."""
    if plain:
        from transformers import PreTrainedTokenizerFast as Tokenizer
    else:
        from transformers import AutoTokenizer as Tokenizer
    return Tokenizer.from_pretrained(source)


def _from_transformers(name: str, source: Path | str, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    from transformers import AutoConfig, AutoModelForCausalLM

    from kernel.drivers.transformers.hf_backend import NAME

    try:
        config = AutoConfig.from_pretrained(str(source))
    except OSError as error:
        raise ModelNotFound(f"cannot find {name}, here or on the hub: {error}") from error
    _check_config(config.get_text_config())
    model = AutoModelForCausalLM.from_pretrained(str(source), config=config, dtype=dtype, attn_implementation=NAME)
    model.eval().to(device)
    return LoadedModel(outline(model), model.state_dict(), model, _digest(source, config.to_json_string()))


# ---- what was loaded before


def _files(source: Path | str) -> list[Path]:
    """The files of weights of a folder."""
    return sorted(source.glob("*.safetensors")) if isinstance(source, Path) else []


def _facts(source: Path | str, options: Options, device: torch.device) -> list[Any]:
    """What decides about an outline, and about whether packed steps were found to say what transformers says."""
    return [_digest(source), version("llmosd"), version("transformers"), options.dtype, str(device)]


def _digest(source: Path | str, configuration: str = "") -> str:
    """What tells these weights from others. `configuration`: for what lies in no folder of ours."""
    files = _files(source)
    if not files:
        return digest(str(source), configuration)
    assert isinstance(source, Path)
    return digest([fingerprint(file) for file in files], (source / "config.json").read_text())


def _read(source: Path | str, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """All weights, in the type asked for; those that have it already stay in the file, where nobody changes them."""
    weights: dict[str, torch.Tensor] = {}
    for file in _files(source):
        weights |= load_file(file)
    return {name: weight.to(device, dtype) for name, weight in weights.items()}


def _check_config(config: Any) -> None:
    """Refuse what the check after loading is too short to notice."""
    layers = set(getattr(config, "layer_types", None) or ()) - LAYERS
    if layers:
        raise ModelLoadFailed(f"layers of type {sorted(layers)} are not supported; use a model without them")
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = ROPE_BY_LENGTH & {part.get("rope_type") for part in (rope, *rope.values()) if isinstance(part, dict)}
    if kinds:
        raise ModelLoadFailed(f"position embeddings of type {sorted(kinds)} are not supported; use another model")
