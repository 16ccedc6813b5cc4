"""Builds a model that is ready to run: a network packed for this machine, its KV memory, and the safe sizes of a step.

`weights` calls it with the weights that it has read. It never retains transformers' model, unless the model runs
through transformers' own modules.
"""

from __future__ import annotations

from concurrent.futures import Future
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from ipc.errors import ModelLoadFailed
from kernel.drivers.protocol import Load
from kernel.drivers.transformers import address_space, batch_invariance, linear, supported
from kernel.drivers.transformers.attention import TILE, SafeLengths
from kernel.drivers.transformers.batch_invariance import RowCounts
from kernel.drivers.transformers.decoder import Decoder, Weights
from kernel.drivers.transformers.forward import Network, PackedForward
from kernel.drivers.transformers.kv import Geometry, KVMemory, maps
from kernel.drivers.transformers.load_errors import explain
from kernel.drivers.transformers.model_manifest import ModelManifest, ids
from kernel.drivers.transformers.options import Options
from kernel.drivers.transformers.tokenizer import Tokenizer
from kernel.drivers.transformers.tuning_cache import code, device_name, digest, get_or_measure, machine

KV_SHARE = 0.5  # of the memory that is free after loading, the share for the KV cache
# The keys under which the configurations of models name their activation.
ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function")
# The modules whose code decides the results of the trials.
ROW_CODE = ("batch_invariance", "decoder", "linear")
LENGTH_CODE = ("attention", "batch_invariance", "kv", "pages")
TOLERANCE = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 1e-1}  # of `hf_backend.check`: share of the largest logit


class Model(NamedTuple):
    """A model that is ready to run.

    `fingerprint` is a hash of everything that decides the numbers of its KV, `identity` one of the model's files;
    `facts` are shown to people. A step has at most `max_rows` rows.
    """

    forward: PackedForward
    tokenizer: Tokenizer
    memory: KVMemory
    context: int
    device: torch.device
    max_rows: int
    fingerprint: str
    identity: str
    facts: dict[str, Any]


class LoadedModel(NamedTuple):
    """A model that was read: its `weights` by name, and the `digest` of its files (`model_files`).

    `model` is transformers' model, or None if a cached manifest made it unnecessary.
    """

    manifest: ModelManifest
    weights: Weights
    model: Any | None
    digest: str

    @property
    def device(self) -> torch.device:
        return next(iter(self.weights.values())).device

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.weights.values())).dtype


def assemble(name: str, loaded: LoadedModel, tokenizer: Future[Any], options: Options, message: Load) -> Model:
    """Build the model called `name`.

    If `loaded` has transformers' model, compare packed steps with it, and raise `ModelLoadFailed` if the logits differ.
    """
    manifest, model, cache, device = loaded.manifest, loaded.model, Path(message.cache), loaded.device
    geometry = Geometry(manifest.layers, manifest.kv_heads, manifest.head_dim, loaded.dtype)
    kernel, pack = _matrix_kernel(loaded, options, cache)
    exact = options.deterministic is not False and device.type == "cpu"
    counts, lengths = _safe_sizes(loaded, geometry, kernel, pack, cache) if exact else (None, SafeLengths())
    memory = _memory(geometry, manifest.context, lengths, device)
    network: Network = Decoder(manifest, loaded.weights, pack) if manifest.decoder else _hf_network(model, pack)
    forward = PackedForward(network, memory, counts, lengths)
    if model is not None:
        _check(name, model, forward, memory, TOLERANCE[kernel])
        if manifest.decoder:
            model.to("meta")  # frees the weights: from now on only the packed copy is needed
    memory.budget = message.kv_memory or options.kv_memory or int(KV_SHARE * _free_memory(device))
    facts = {
        "weights": kernel,
        "device": str(device),
        "network": "decoder" if manifest.decoder else "transformers",
        "attention": "one batch" if lengths.safe else "one by one",
        "deterministic": counts is not None and not _has_experts(model),
        "parameters": manifest.parameters,
        "vocabulary": manifest.vocabulary,
        "threads": torch.get_num_threads(),
        "kv_bytes_per_token": geometry.token_bytes,
        "kv_budget": memory.budget,
    }
    versions = [code(), version("transformers"), machine(), device_name(device)]
    fingerprint = digest(loaded.digest, kernel, facts["network"], versions, TILE, str(geometry.dtype), lengths.safe)
    max_rows = counts.largest if counts is not None else batch_invariance.MAX_ROWS
    hf = tokenizer.result()
    ends = frozenset(manifest.ends) | ids(hf.eos_token_id)
    codec = Tokenizer(hf, ends, name, manifest.vocabulary, manifest.context)
    return Model(forward, codec, memory, manifest.context, device, max_rows, fingerprint, loaded.digest, facts)


def _has_experts(model: Any | None) -> bool:
    """Whether `model` is a mixture of experts. The decoder runs none, so a model from a cached manifest has none."""
    return model is not None and any(part.endswith("experts") for part, _ in model.named_modules())


def _check(name: str, model: Any, forward: PackedForward, memory: KVMemory, tolerance: float) -> None:
    from kernel.drivers.transformers.hf_backend import check

    try:
        check(model, forward, memory, tolerance)
    except Exception as error:
        reason = str(error) if isinstance(error, NotImplementedError) else f"its code fails: {explain(error)}"
        raise ModelLoadFailed(
            f"{name} ({type(model).__name__}) cannot run in packed steps: {reason}; {supported.ADVICE}"
        ) from error


def _matrix_kernel(loaded: LoadedModel, options: Options, cache: Path) -> tuple[str, linear.Pack]:
    """The matrix kernel that `options` names, or the fastest on this machine: its name and its packing function."""
    if loaded.device.type != "cpu":
        return str(loaded.dtype).removeprefix("torch."), linear.pack_plain
    shape = loaded.manifest.shapes[0]
    name: str | None = options.dtype
    if name is None:
        name = get_or_measure(cache, "kernel", shape, str, lambda: linear.fastest(shape), "linear")
    return name, linear.CPU_KERNELS[name]


def _safe_sizes(
    loaded: LoadedModel, geometry: Geometry, kernel: str, pack: linear.Pack, cache: Path
) -> tuple[RowCounts | None, SafeLengths]:
    """The safe counts of rows (None if they are too few) and the safe lengths; see `batch_invariance`."""
    manifest, shapes = loaded.manifest, set(loaded.manifest.shapes)
    facts = [sorted(shapes), kernel]
    counts = get_or_measure(
        cache,
        "rows",
        facts,
        batch_invariance.Counts,
        lambda: batch_invariance.safe_row_counts(shapes, pack),
        *ROW_CODE,
    )
    if loaded.model is not None and not manifest.decoder:  # `decoder.gated` is safe at any count
        counts = tuple(sorted({*counts} & {*_safe_for_activation(loaded.model.config.get_text_config(), cache)}))
    queries = manifest.heads // geometry.heads
    shape = [geometry.heads, geometry.head_dim, str(geometry.dtype), queries]
    safe = get_or_measure(
        cache,
        "lengths",
        shape,
        batch_invariance.Counts,
        lambda: batch_invariance.safe_lengths(geometry, queries),
        *LENGTH_CODE,
    )
    enough = bool(counts) and counts[-1] >= 2 * TILE  # half a step for the tile of a prompt, half for other sequences
    return RowCounts(counts) if enough else None, SafeLengths(safe)


def _safe_for_activation(config: Any, cache: Path) -> batch_invariance.Counts:
    """The safe counts for the activation that `config`, the configuration of a model in transformers, names."""
    name = next((found for key in ACTIVATIONS if (found := getattr(config, key, None))), "gelu")
    size = getattr(config, "intermediate_size", None) or 4 * config.hidden_size

    def measure() -> batch_invariance.Counts:
        from transformers.activations import ACT2FN

        return batch_invariance.safe_activation_counts(ACT2FN[name], size)

    facts = [name, size, version("transformers")]
    return get_or_measure(cache, "activation", facts, batch_invariance.Counts, measure, "batch_invariance")


def _memory(geometry: Geometry, context: int, lengths: SafeLengths, device: torch.device) -> KVMemory:
    """The KV memory. Each slab holds the whole context, padded to a length in `lengths`.

    Where a slab takes memory only when it is written, the address space limits the number of slabs; elsewhere, the free
    memory does.
    """
    capacity = lengths.padded(context)
    room = address_space.room() if maps(device) else int(KV_SHARE * _free_memory(device))
    return address_space.kv_memory(geometry, capacity, device, room)


def _hf_network(model: Any, pack: linear.Pack) -> Network:
    from kernel.drivers.transformers.hf_backend import HFBackend

    if model.device.type == "cpu":
        linear.replace(model, pack)
    return HFBackend(model)


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
