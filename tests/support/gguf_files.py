"""Writes a tiny model as a GGUF file, as llama.cpp's converters do, in any of the formats of its weights.

`write` rounds the weights of the model that it is given to what the file holds, so that the model itself is the
reference, and neither llama.cpp nor transformers' reader is needed to know the right answer. For formats that the
package `gguf` can only read, the blocks are random. It never writes a file for a family that llama.cpp cannot run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy
import torch
from gguf import GGMLQuantizationType as Format
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

# Where a block of a format has its scale and its minimum, float16 numbers, and the ratio of the second to the first
# at which random weights have a mean of about zero.
RANDOM_BLOCKS: dict[str, tuple[int, int | None, float]] = {
    "Q2_K": (80, 82, 1.5),
    "Q3_K": (108, None, 0),
    "Q4_K": (0, 2, 7.5),
    "Q5_K": (0, 2, 15.5),
    "Q6_K": (208, None, 0),
    "IQ2_XXS": (0, None, 0),
    "IQ2_XS": (0, None, 0),
    "IQ2_S": (0, None, 0),
    "IQ3_XXS": (0, None, 0),
    "IQ3_S": (0, None, 0),
    "IQ4_NL": (0, None, 0),
    "IQ4_XS": (0, None, 0),
}
EXACT = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")  # the package can write these
FORMATS = (*EXACT, *RANDOM_BLOCKS)
ARCHITECTURES = {
    "gemma3_text": "gemma3",
    "mistral": "llama",
    "mixtral": "llama",
    "gpt_oss": "gpt-oss",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
}

Array = NDArray[Any]


GEMMA3_PATTERN = 6  # of its layers, each last one attends to all tokens; a file does not say which


class NotWritable(Exception):
    """llama.cpp cannot run the model, or such a file cannot hold it, so nobody has such a file."""


def write(model: Any, path: Path, kind: str) -> None:
    """Write `model` to `path` with its matrices in the format `kind`, and round the model's own weights to it."""
    config = model.config
    name = ARCHITECTURES.get(config.model_type, config.model_type)
    if isinstance(config.eos_token_id, list) and len(config.eos_token_id) > 1:
        raise NotWritable("a file names one end token")
    if name == "gemma3" and config.num_hidden_layers % GEMMA3_PATTERN:
        raise NotWritable("the layers with a window of Gemma 3 have a fixed pattern")
    writer = gguf.GGUFWriter(path, name)
    writer.add_name("tiny")
    _add_sizes(writer, config)
    _add_rope(writer, config)
    _add_tokenizer(writer, config)
    arch = next((key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name), None)
    if arch is None:
        raise NotWritable(f"llama.cpp cannot run models of the type {name}")
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    generator = numpy.random.default_rng(0)
    for key, part in _parts(model):
        base, _, suffix = key.rpartition(".")
        found = names.get_name(base)
        if found is None:
            raise NotWritable(f"llama.cpp has no name for {key}")
        to_file, from_file = _turned(name, config, key)
        values = to_file(part.detach().numpy().astype(numpy.float32))
        chosen = _chosen(values, kind)
        data = _random(values, chosen, generator) if chosen.name in RANDOM_BLOCKS else quantize(values, chosen)
        writer.add_tensor(f"{found}.{suffix}", data, raw_dtype=chosen)
        with torch.no_grad():
            part.copy_(torch.from_numpy(from_file(dequantize(data, chosen)).copy()))
    if "rope_freqs.weight" in (extra := _rope_factors(model)):
        writer.add_tensor("rope_freqs.weight", extra["rope_freqs.weight"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _chosen(values: Array, kind: str) -> Format:
    """The format of `values`: `kind` for matrices whose rows are whole blocks, as llama.cpp chooses."""
    if values.ndim == 1:
        return Format.F32
    elements, _ = gguf.GGML_QUANT_SIZES[Format[kind]]
    return Format[kind] if values.shape[-1] % elements == 0 else Format.F16


def _parts(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of `model` by name. Gate and up of experts, one tensor in transformers, are separate in a file."""
    for key, parameter in model.named_parameters():
        if not key.endswith(("experts.gate_up_proj", "experts.down_proj")):
            yield key, parameter
        elif key.endswith("down_proj"):
            yield f"{key}.weight", parameter
        else:
            half = parameter.shape[1] // 2
            yield key.replace("gate_up_proj", "gate_proj.weight"), parameter[:, :half]
            yield key.replace("gate_up_proj", "up_proj.weight"), parameter[:, half:]


def _add_sizes(writer: Any, config: Any) -> None:
    writer.add_context_length(getattr(config, "max_position_embeddings", 192))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    if (epsilon := getattr(config, "rms_norm_eps", None)) is not None:
        writer.add_layer_norm_rms_eps(epsilon)
    if (epsilon := getattr(config, "layer_norm_eps", getattr(config, "norm_epsilon", None))) is not None:
        writer.add_layer_norm_eps(epsilon)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    writer.add_vocab_size(config.vocab_size)
    if experts := getattr(config, "num_experts", getattr(config, "num_local_experts", None)):
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(getattr(config, "moe_intermediate_size", config.intermediate_size))
    if shared := getattr(config, "shared_expert_intermediate_size", None):
        writer.add_expert_shared_feed_forward_length(shared)


def _add_rope(writer: Any, config: Any) -> None:
    rope = getattr(config, "rope_parameters", None)
    if not rope:
        return
    rope = rope.get("full_attention", rope)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(rope["rope_theta"])
    kind = rope.get("rope_type", "default")
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
        if kind == "yarn":
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def _rope_factors(model: Any) -> dict[str, Array]:
    """The divisors of the frequencies that llama.cpp stores for rope of the kind "llama3"."""
    rope = getattr(model.config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "llama3":
        return {}
    head_dim = getattr(model.config, "head_dim", None) or model.config.hidden_size // model.config.num_attention_heads
    plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, head_dim, 2) / head_dim)
    return {"rope_freqs.weight": (plain / model.model.rotary_emb.inv_freq).numpy().astype(numpy.float32)}


def _add_tokenizer(writer: Any, config: Any) -> None:
    """A vocabulary of letters, with one merge, because a list of none cannot be written."""
    special = ["<pad>", "<end>", "<start>", "<unknown>", "<other>"]
    letters = [chr(number) for number in range(33, 127)]  # as in the byte-level alphabet
    tokens = (special + [*"ab", "ab"] + [letter for letter in letters if letter not in "ab"])[: config.vocab_size]
    tokens += [f"<{number}>" for number in range(len(tokens), config.vocab_size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(0)


def _turned(name: str, config: Any, key: str) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """The function that llama.cpp's converter applies to the weights called `key`, and its inverse."""
    if name == "llama" and (".q_proj." in key or ".k_proj." in key):
        heads = config.num_attention_heads if ".q_proj." in key else config.num_key_value_heads

        def halves(values: Array) -> Array:
            return values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)

        def pairs(values: Array) -> Array:
            return values.reshape(heads, -1, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)

        return halves, pairs
    if key.endswith("shared_expert_gate.weight"):
        return lambda values: values[0], lambda values: values[None]
    if name in ("gemma2", "gemma3", "nemotron") and key.endswith("norm.weight"):
        return lambda values: values + 1, lambda values: values - 1
    if name == "gpt2" and key.split(".")[-2] in ("c_attn", "c_proj", "c_fc") and key.endswith("weight"):
        return lambda values: values.T, lambda values: values.T
    return lambda values: values, lambda values: values


def _random(values: Array, kind: Format, generator: Any) -> Array:
    """Random blocks of the format `kind` whose weights have the shape of `values` and about their size."""
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    rows = values.shape[:-1]
    blocks = generator.integers(0, 256, (values.size // elements, size), dtype=numpy.uint8)
    scale, minimum, ratio = RANDOM_BLOCKS[kind.name]

    def scaled(by: float) -> Array:
        blocks[:, scale : scale + 2] = numpy.array([by], numpy.float16).view(numpy.uint8)
        if minimum is not None:
            blocks[:, minimum : minimum + 2] = numpy.array([by * ratio], numpy.float16).view(numpy.uint8)
        whole: Array = blocks.reshape(*rows, -1)
        return whole

    unit: float = dequantize(scaled(0.01), kind).std() / 0.01
    return scaled(float(values.std() / unit))
