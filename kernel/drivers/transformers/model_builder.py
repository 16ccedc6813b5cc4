"""What runs: a network packed for this machine, memory for keys and values, and the trials that make tokens exact.

Called by `weights` with what it has read. Afterwards that is not needed any more, unless the model's own modules run.
"""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from ipc.errors import ModelLoadFailed
from kernel.drivers.protocol import Load
from kernel.drivers.transformers import batch_invariance, linear
from kernel.drivers.transformers.attention import TILE, SafeLengths
from kernel.drivers.transformers.batch_invariance import RowCounts
from kernel.drivers.transformers.decoder import Decoder, Weights
from kernel.drivers.transformers.forward import Network, PackedForward
from kernel.drivers.transformers.kv import Geometry, KVMemory, maps
from kernel.drivers.transformers.model_manifest import ModelManifest, ids
from kernel.drivers.transformers.options import Options
from kernel.drivers.transformers.tokenizer import Tokenizer
from kernel.drivers.transformers.tuning_cache import digest, machine, remembered

SHARE = 0.5  # of the memory that is free after loading, for keys and values
ADDRESSES = 1 << 42  # bytes of virtual memory for slabs
SLABS = 1024  # at the most: sequences that run, and parked ones that stay in memory
ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function")  # how configurations call the name of theirs
TOLERANCE = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 1e-1}  # of the largest logit, beside the model's own


class Model(NamedTuple):
    """A model that is ready to run. `fingerprint`: of all that decides about its numbers; `facts` are for people."""

    forward: PackedForward
    tokenizer: Tokenizer
    memory: KVMemory
    context: int
    device: torch.device
    most_rows: int
    fingerprint: str
    facts: dict[str, Any]


class LoadedModel(NamedTuple):
    """What was read: `weights` by name, and the `model` of transformers that they are of, unless it is not needed.

    `digest` tells these weights from others.
    """

    outline: ModelManifest
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
    """Raises `ModelLoadFailed` if the model cannot run in packed steps, as far as there is one to compare with."""
    outline, model, cache, device = loaded.outline, loaded.model, Path(message.cache), loaded.device
    geometry = Geometry(outline.layers, outline.kv_heads, outline.head_dim, loaded.dtype)
    kernel, pack = _kernel(loaded, options, cache)
    exact = options.deterministic is not False and device.type == "cpu"
    counts, lengths = _safe(loaded, geometry, kernel, pack, cache) if exact else (None, SafeLengths())
    memory = _memory(geometry, outline.context, lengths, device)
    network: Network = Decoder(outline, loaded.weights, pack) if outline.lean else _modules(model, pack)
    forward = PackedForward(network, memory, counts, lengths)
    if model is not None:
        _check(name, model, forward, memory, TOLERANCE[kernel])
        if outline.lean:
            model.to("meta")  # the packed copy is the only one that is needed
    memory.budget = message.kv_memory or options.kv_memory or int(SHARE * _free_memory(device))
    facts = {
        "weights": kernel,
        "device": str(device),
        "network": "decoder" if outline.lean else "transformers",
        "attention": "one batch" if lengths.safe else "one by one",
        "deterministic": counts is not None,
        "parameters": outline.parameters,
        "vocabulary": outline.vocabulary,
        "threads": torch.get_num_threads(),
        "kv_bytes_per_token": geometry.token_bytes,
        "kv_budget": memory.budget,
    }
    fingerprint = digest(loaded.digest, kernel, facts["network"], machine(), TILE, str(geometry.dtype))
    most_rows = counts.most if counts is not None else batch_invariance.MOST
    hf = tokenizer.result()
    ends = frozenset(outline.ends) | ids(hf.eos_token_id)
    codec = Tokenizer(hf, ends, name, outline.vocabulary)
    return Model(forward, codec, memory, outline.context, device, most_rows, fingerprint, facts)


def _check(name: str, model: Any, forward: PackedForward, memory: KVMemory, tolerance: float) -> None:
    from kernel.drivers.transformers.hf_backend import check

    try:
        check(model, forward, memory, tolerance)
    except Exception as error:
        raise ModelLoadFailed(
            f"{name} ({type(model).__name__}) cannot run in packed steps: {error}; use another model"
        ) from error


def _kernel(loaded: LoadedModel, options: Options, cache: Path) -> tuple[str, linear.Pack]:
    """The type of packed weights, and what packs them: the one asked for, or the faster one of this machine."""
    if loaded.device.type != "cpu":
        return str(loaded.dtype).removeprefix("torch."), linear.plain
    shape = loaded.outline.shapes[0]
    name: str | None = options.dtype
    if name is None:
        name = remembered(cache, "kernel", shape, str, lambda: linear.fastest(shape))
    return name, linear.CPU_KERNELS[name]


def _safe(
    loaded: LoadedModel, geometry: Geometry, kernel: str, pack: linear.Pack, cache: Path
) -> tuple[RowCounts | None, SafeLengths]:
    """Counts of rows and lengths at which the numbers of a token depend on no other; None if there are none."""
    outline, shapes = loaded.outline, set(loaded.outline.shapes)
    facts = [sorted(shapes), kernel, batch_invariance.CANDIDATES]
    counts = remembered(
        cache, "rows", facts, batch_invariance.Counts, lambda: batch_invariance.row_counts(shapes, pack)
    )
    if loaded.model is not None and not outline.lean:  # the decoder's own is safe at any count
        counts = tuple(sorted({*counts} & {*_safe_for_activation(loaded.model.config.get_text_config(), cache)}))
    queries = outline.heads // geometry.heads
    shape = [geometry.heads, geometry.head_dim, queries]
    safe = remembered(
        cache, "lengths", shape, batch_invariance.Counts, lambda: batch_invariance.lengths(geometry, queries)
    )
    enough = bool(counts) and counts[-1] >= 2 * TILE  # half a step for a tile of a prompt, half for its neighbours
    return RowCounts(counts) if enough else None, SafeLengths(safe)


def _safe_for_activation(config: Any, cache: Path) -> batch_invariance.Counts:
    """For a model that runs through transformers' modules, as far as its configuration tells what they compute."""
    name = next((found for key in ACTIVATIONS if (found := getattr(config, key, None))), "gelu")
    size = getattr(config, "intermediate_size", None) or 4 * config.hidden_size

    def measure() -> batch_invariance.Counts:
        from transformers.activations import ACT2FN

        return batch_invariance.activation_counts(ACT2FN[name], size)

    return remembered(cache, "activation", [name, size, batch_invariance.CANDIDATES], batch_invariance.Counts, measure)


def _memory(geometry: Geometry, context: int, lengths: SafeLengths, device: torch.device) -> KVMemory:
    """The memory for keys and values: slabs for the whole context each, and for what its last token looks at beyond.

    There are as many slabs as there are addresses for or, where slabs take memory before they are used, memory.
    """
    capacity = lengths.padded(context)
    room = ADDRESSES if maps(device) else int(SHARE * _free_memory(device))
    return KVMemory(geometry, capacity, max(2, min(SLABS, room // (capacity * geometry.token_bytes))), device, room)


def _modules(model: Any, pack: linear.Pack) -> Network:
    from kernel.drivers.transformers.hf_backend import HFBackend

    if model.device.type == "cpu":
        linear.replace(model, pack)
    return HFBackend(model)


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
