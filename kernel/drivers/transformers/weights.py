"""Reads the weights and the tokenizer of a model, and has `model_builder` build the model that runs.

`__main__` calls `load` once. transformers loads a model the first time. If the model is in a folder and the decoder can
run it, the load caches its manifest, and later starts read the weight files directly. It does so only after it has
compared all that a later start will read with what transformers has loaded (`direct_read.py`). Every failure is an
`LlmosError`; this module never prints anything.
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

from ipc.errors import LlmosError, ModelLoadFailed, ModelNotFound
from kernel.drivers.protocol import Load
from kernel.drivers.transformers import checkpoint, direct_read, loaded_tensors, supported, tuning_cache
from kernel.drivers.transformers.conversion import converted
from kernel.drivers.transformers.direct_read import ReadPlan
from kernel.drivers.transformers.load_errors import explain
from kernel.drivers.transformers.model_builder import LoadedModel, Model, assemble
from kernel.drivers.transformers.model_files import ModelFiles
from kernel.drivers.transformers.model_manifest import ModelManifest, manifest_of
from kernel.drivers.transformers.options import Options
from kernel.drivers.transformers.tuning_cache import code, device_name, machine

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
        return _load(name, source, options, message, report)
    except LlmosError:
        raise
    except checkpoint.UnfitFiles as error:
        raise ModelLoadFailed(f"cannot load {name}: {error}") from error
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
    cache = Path(message.cache)
    files = ModelFiles(source, cache, report) if isinstance(source, Path) else None
    facts = None if files is None else _facts(files.digest, options, device)
    report("loading weights")
    cached = None if facts is None else tuning_cache.get(cache, "outline", facts, LoadCache)
    loaded = None if cached is None else _from_manifest(cached, source, device, dtype)
    plan = None
    if loaded is None:
        cached, loaded = None, _from_transformers(name, source, device, dtype)
        plan = direct_read.plan(name, _files(source), loaded.weights) if loaded.manifest.decoder else None
    files = files or ModelFiles(_snapshot(source), cache, report)
    loaded = loaded._replace(digest=files.digest)
    with ThreadPoolExecutor(1) as pool:  # the thread also imports transformers, if that has not happened yet
        tokenizer = pool.submit(_tokenizer, str(source), cached is not None and cached.plain_tokenizer)
        report("packing weights")
        model = assemble(name, loaded, tokenizer, options, message)
    if files.changed:
        raise ModelLoadFailed(f"the files of {name} changed while the model was loaded; load it again")
    if plan is not None and facts is not None:
        plain = _is_plain(tokenizer.result())
        tuning_cache.put(cache, "outline", facts, LoadCache(loaded.manifest, plain, plan))
    return model


class LoadCache(msgspec.Struct, frozen=True):
    """Facts that one start caches for the next ones.

    `plain_tokenizer`: the tokenizer is of transformers' generic class, whose behaviour comes only from its data files.
    """

    manifest: ModelManifest = msgspec.field(name="outline")  # the name in files of the cache
    plain_tokenizer: bool
    plan: ReadPlan  # how to read the weights


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
    from transformers import AutoConfig, PretrainedConfig

    files = _files(source)
    headers = checkpoint.tensors(files) if checkpoint.has_headers(files) else {}
    try:
        settings, _ = PretrainedConfig.get_config_dict(str(source))
        supported.check_settings(name, settings)
        config = AutoConfig.from_pretrained(str(source), trust_remote_code=False)
    except OSError as error:
        raise ModelNotFound(f"cannot find {name}, here or on the hub: {explain(error)}") from error
    supported.check(name, config)
    model = loaded_tensors.load_exactly(source, headers, config, dtype)
    model.eval().to(device)
    supported.check_numbers(name, model)
    return LoadedModel(manifest_of(model), model.state_dict(), model, "")


def _snapshot(name: Path | str) -> Path:
    """The folder in which the files of the model `name` of the hub are, after transformers has loaded it."""
    from transformers.utils import cached_file

    return Path(cached_file(str(name), "config.json")).parent


def _from_manifest(
    cached: LoadCache, source: Path | str, device: torch.device, dtype: torch.dtype
) -> LoadedModel | None:
    """The model as `cached` describes it; None if its files hold other tensors than at that time."""
    weights = direct_read.read(cached.plan, _files(source), device, dtype)
    return None if weights is None else LoadedModel(cached.manifest, weights, None, "")


# ---- weights on disk


def _files(source: Path | str) -> list[Path]:
    """The weight files of a folder; none for a model on the hub."""
    return checkpoint.weight_files(source) if isinstance(source, Path) else []


def _facts(content: str, options: Options, device: torch.device) -> list[Any]:
    """The key of the cached manifest: all that decides the manifest and the result of `hf_backend.check`.

    `content`: the digest of the model's files.
    """
    versions = [version(package) for package in ("llmosd", "transformers", "tokenizers", "safetensors")]
    threads = torch.get_num_threads()
    return [content, code(), versions, machine(), threads, options.dtype, options.deterministic, device_name(device)]
