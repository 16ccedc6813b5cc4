"""Reads the weights and the tokenizer of a model, and has `model_builder` build the model that runs.

`__main__` calls `load` once. transformers loads a model the first time. If the model is in a folder and the decoder can
run it, the load caches its manifest, and later starts read the weight files directly. Every failure is an `LlmosError`;
this module never prints anything.
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
from kernel.drivers.transformers import supported, tuning_cache
from kernel.drivers.transformers.conversion import converted, fingerprint
from kernel.drivers.transformers.load_errors import explain
from kernel.drivers.transformers.model_builder import LoadedModel, Model, assemble
from kernel.drivers.transformers.model_manifest import ModelManifest, manifest_of
from kernel.drivers.transformers.options import Options
from kernel.drivers.transformers.tuning_cache import digest

if find_spec("transformers") is None:
    raise ImportError("no module named transformers")


def load(message: Load, source: Path | str, options: Options, report: Callable[[str], None]) -> Model:
    """Load the model that `message` names from `source`, the result of `source.locate`. Call `report` at each stage.

    Raises `ModelNotFound`, `MissingExtra`, or `ModelLoadFailed` with the cause of any other failure.
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
        place = "" if str(source) == name else f" from {source}"
        raise ModelLoadFailed(f"cannot load {name}{place}: {explain(error, Path(source))}") from error


def _load(name: str, source: Path | str, options: Options, message: Load, report: Callable[[str], None]) -> Model:
    threads = options.threads or len(message.cores)
    if threads:
        torch.set_num_threads(threads)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    # On a CPU the weights are read as float32; `model_builder` chooses the type of the packed weights.
    dtype = torch.float32 if device.type == "cpu" else getattr(torch, options.dtype or "bfloat16")
    cache, facts = Path(message.cache), _facts(source, options, device)
    cached = tuning_cache.get(cache, "outline", facts, LoadCache)
    if cached is None:
        loaded = _from_transformers(name, source, device, dtype)
    else:
        loaded = LoadedModel(cached.manifest, _read_weights(source, device, dtype), None, _digest(source))
    with ThreadPoolExecutor(1) as pool:  # the thread also imports transformers, if that has not happened yet
        tokenizer = pool.submit(_tokenizer, str(source), cached is not None and cached.plain_tokenizer)
        report("packing weights")
        model = assemble(name, loaded, tokenizer, options, message)
    if cached is None and loaded.manifest.decoder and _files(source):
        tuning_cache.put(cache, "outline", facts, LoadCache(loaded.manifest, _is_plain(tokenizer.result())))
    return model


class LoadCache(msgspec.Struct, frozen=True):
    """Facts that one start caches for the next ones.

    `plain_tokenizer`: the tokenizer is of transformers' generic class, whose behaviour comes only from its data files.
    """

    manifest: ModelManifest = msgspec.field(name="outline")  # the name in files of the cache
    plain_tokenizer: bool


def _is_plain(tokenizer: Any) -> bool:
    from transformers import PreTrainedTokenizerFast

    return type(tokenizer) is PreTrainedTokenizerFast


def _tokenizer(source: str, plain: bool) -> Any:
    """Load the tokenizer. If it is `plain`, skip the search for its class, which takes longer than the load itself."""
    if plain:
        from transformers import PreTrainedTokenizerFast as Tokenizer
    else:
        from transformers import AutoTokenizer as Tokenizer
    return Tokenizer.from_pretrained(source)


def _from_transformers(name: str, source: Path | str, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

    from kernel.drivers.transformers.hf_backend import NAME

    try:
        settings, _ = PretrainedConfig.get_config_dict(str(source))
        supported.check_settings(name, settings)
        config = AutoConfig.from_pretrained(str(source), trust_remote_code=False)
    except OSError as error:
        raise ModelNotFound(f"cannot find {name}, here or on the hub: {explain(error)}") from error
    supported.check(name, config)
    model = AutoModelForCausalLM.from_pretrained(str(source), config=config, dtype=dtype, attn_implementation=NAME)
    model.eval().to(device)
    supported.check_numbers(name, model)
    return LoadedModel(manifest_of(model), model.state_dict(), model, _digest(source, config.to_json_string()))


# ---- weights on disk


def _files(source: Path | str) -> list[Path]:
    """The weight files of a folder; none for a model on the hub."""
    return sorted(source.glob("*.safetensors")) if isinstance(source, Path) else []


def _facts(source: Path | str, options: Options, device: torch.device) -> list[Any]:
    """The key of the cached manifest: all that decides the manifest and the result of `hf_backend.check`."""
    return [_digest(source), version("llmosd"), version("transformers"), options.dtype, str(device)]


def _digest(source: Path | str, configuration: str = "") -> str:
    """A hash that identifies the weights. For a model on the hub, it is a hash of the name and the `configuration`."""
    files = _files(source)
    if not files:
        return digest(str(source), configuration)
    assert isinstance(source, Path)
    return digest([fingerprint(file) for file in files], (source / "config.json").read_text())


def _read_weights(source: Path | str, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """All weights, as `dtype`. Weights that have this type in the file stay mapped from it: they are never changed."""
    weights: dict[str, torch.Tensor] = {}
    for file in _files(source):
        weights |= load_file(file)
    return {name: weight.to(device, dtype) for name, weight in weights.items()}
