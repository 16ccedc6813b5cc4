"""Takes over the sizes in a GGUF's metadata for which transformers has a setting, but which it does not read.

Without them a model would run with the defaults of its family: it would attend to tokens beyond its window, or rotate
another part of each head, and answer a little wrongly. `gguf_check` calls `complete_sizes` before a load. This module
never reads a tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kernel.drivers.transformers.checkpoint import UnfitFiles

# The families of which every layer has the same window.
ONE_WINDOW = {"mistral", "phi3", "starcoder2"}
# The families that may rotate a part of each head.
PARTIAL_ROTARY = {"nemotron", "phi3", "stablelm"}
# Settings of transformers, and their keys in a GGUF.
PLAIN = {
    "moe_intermediate_size": "expert_feed_forward_length",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
    "max_position_embeddings": "context_length",
}


def complete_sizes(gguf: Path, fields: Mapping[str, Any], config: Any) -> None:
    """Set in `config` the sizes in `fields`, the metadata of `gguf`. Raises `UnfitFiles` if that is impossible."""
    prefix = f"{fields['general.architecture']}."
    for setting, key in PLAIN.items():
        value = fields.get(prefix + key)
        if value and getattr(config, setting, value) != value:
            setattr(config, setting, value)
    _set_window(gguf, fields.get(prefix + "attention.sliding_window"), config)
    _set_rotary_part(fields.get(prefix + "rope.dimension_count"), config)


def _set_window(gguf: Path, window: int | None, config: Any) -> None:
    """Make each layer attend to the last `window` tokens. None and 0 mean all tokens."""
    if not window or window >= config.max_position_embeddings or getattr(config, "sliding_window", None) == window:
        return
    if config.model_type not in ONE_WINDOW:
        raise UnfitFiles(
            f"{gguf} has a sliding window of {window} tokens, which transformers does not apply to the family "
            f"{config.model_type}; use the model's folder of safetensors, or a model of another family"
        )
    config.sliding_window = window


def _set_rotary_part(width: int | None, config: Any) -> None:
    """Make position embeddings rotate the first `width` numbers of each head, in families that may rotate a part."""
    if not width or config.model_type not in PARTIAL_ROTARY:
        return
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    config.partial_rotary_factor = width / head_dim
    config.rope_parameters = dict(config.rope_parameters or {}) | {"partial_rotary_factor": width / head_dim}
