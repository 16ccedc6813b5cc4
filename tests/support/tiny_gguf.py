"""Writes GGUF files of tiny models, whole ones and damaged ones, for tests of their conversion."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the driver runs torch models (extra `local`)")
gguf = pytest.importorskip("gguf", reason="conversions need gguf (extra `local`)")

HEADS, KV_HEADS, SIZE, INNER, LAYERS, HEAD_DIM = 4, 2, 64, 96, 2, 16
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def write_gguf(
    path: Path,
    architecture: str = "llama",
    *,
    layers: int = LAYERS,
    tied: bool = False,
    without: Iterable[str] = (),
    tensors: dict[str, Any] | None = None,
    fields: dict[str, Any] | None = None,
) -> Path:
    """Write a model with random weights, in float32, without the tensors and fields in `without`.

    `tensors` and `fields` (of strings and floats) are added, or replace others. `layers` is the count in the metadata.
    """
    without = set(without)
    tokens, merges = _vocabulary()
    writer: Any = gguf.GGUFWriter(str(path), architecture)
    scalars = {
        writer.add_context_length: 256,
        writer.add_embedding_length: SIZE,
        writer.add_block_count: layers,
        writer.add_feed_forward_length: INNER,
        writer.add_head_count: HEADS,
        writer.add_head_count_kv: KV_HEADS,
        writer.add_key_length: HEAD_DIM,
        writer.add_rope_dimension_count: HEAD_DIM,
        writer.add_layer_norm_rms_eps: 1e-6,
        writer.add_rope_freq_base: 1e4,
        writer.add_vocab_size: len(tokens),
    }
    for add, scalar in scalars.items():
        add(scalar)
    parts: dict[str, Callable[[], Any]] = {
        "tokenizer.ggml.model": lambda: (writer.add_tokenizer_model("gpt2"), writer.add_tokenizer_pre("smollm")),
        "tokenizer.ggml.tokens": lambda: writer.add_token_list(tokens),
        "tokenizer.ggml.token_type": lambda: writer.add_token_types([3 if it in CONTROL else 1 for it in tokens]),
        "tokenizer.ggml.merges": lambda: writer.add_token_merges(merges),
    }
    for part, add_part in parts.items():
        if part not in without:
            add_part()
    writer.add_eos_token_id(2)
    for name, value in (fields or {}).items():
        adds = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32}
        adds[type(value)](name, value)
    for name, tensor in (_tensors(architecture, len(tokens), tied) | (tensors or {})).items():
        if name not in without:
            writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(architecture: str, vocabulary: int, tied: bool) -> dict[str, Any]:
    torch.manual_seed(1)
    found = {"token_embd.weight": torch.randn(vocabulary, SIZE), "output_norm.weight": torch.ones(SIZE)}
    if not tied:
        found["output.weight"] = torch.randn(vocabulary, SIZE)
    queries, keys = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    for layer in range(LAYERS):
        shapes = {
            "attn_q": (queries, SIZE),
            "attn_k": (keys, SIZE),
            "attn_v": (keys, SIZE),
            "attn_output": (SIZE, queries),
            "ffn_gate": (INNER, SIZE),
            "ffn_up": (INNER, SIZE),
            "ffn_down": (SIZE, INNER),
        }
        found |= {f"blk.{layer}.{name}.weight": 0.4 * torch.randn(shape) for name, shape in shapes.items()}
        norms = {"attn_norm": SIZE, "ffn_norm": SIZE}
        if architecture == "qwen3":
            norms |= {"attn_q_norm": HEAD_DIM, "attn_k_norm": HEAD_DIM}
        found |= {f"blk.{layer}.{name}.weight": torch.ones(size) for name, size in norms.items()}
    return found


def _vocabulary() -> tuple[list[str], list[str]]:
    """The tokens and the merges of a byte-level tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=280, special_tokens=CONTROL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 3, trainer)
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    return tokens, [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
