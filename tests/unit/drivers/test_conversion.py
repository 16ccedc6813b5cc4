"""A GGUF runs with all that is in the file, or is refused with the name of the part that is missing or not read."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the driver runs torch models (extra `local`)")
transformers = pytest.importorskip("transformers", reason="the driver runs transformers models (extra `local`)")
pytest.importorskip("gguf", reason="conversions need gguf (extra `local`)")

from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # noqa: E402

from ipc.errors import ModelLoadFailed  # noqa: E402
from kernel.drivers.transformers.checkpoint import UnfitFiles  # noqa: E402
from kernel.drivers.transformers.gguf_check import complete  # noqa: E402
from kernel.drivers.transformers.gguf_header import read_header  # noqa: E402
from tests.support.tiny_folders import close, load, logits, own_logits  # noqa: E402
from tests.support.tiny_gguf import HEAD_DIM, write_gguf  # noqa: E402

DOWN = "blk.1.ffn_down.weight"
LONG = [3 + 7 * place % 200 for place in range(60)]


@pytest.mark.parametrize(("architecture", "tied"), [("llama", False), ("llama", True), ("qwen3", False)])
def test_both_loads_of_a_gguf_give_the_model_of_transformers(tmp_path: Path, architecture: str, tied: bool) -> None:
    path = write_gguf(tmp_path / "m.gguf", architecture, tied=tied)
    first = logits(load(path))
    second = logits(load(path))
    assert torch.equal(first, second)
    config = transformers.AutoConfig.from_pretrained(tmp_path, gguf_file="m.gguf")
    config.head_dim = HEAD_DIM  # transformers takes 128 for any Qwen3
    assert close(first, own_logits(tmp_path, gguf_file="m.gguf", config=config))


def rope(kind: str, **settings: Any) -> Any:
    """A configuration of transformers with position embeddings that are scaled in this way."""
    parameters = {"rope_type": kind, "rope_theta": 1e4, **settings}
    return transformers.LlamaConfig(
        hidden_size=64,
        num_attention_heads=4,
        head_dim=HEAD_DIM,
        max_position_embeddings=256,
        rope_parameters=parameters,
    )


LLAMA3 = rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
LINEAR = rope("linear", factor=4.0)
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=64)


def factors(config: Any) -> Any:
    """The divisors of the frequencies, which a GGUF holds in place of the settings of Llama 3."""
    plain = 1e4 ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    return plain / ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]](config)[0]


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (LLAMA3, {"tensors": {"rope_freqs.weight": factors(LLAMA3)}}),
        (LINEAR, {"fields": {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}}),
        (
            YARN,
            {
                "fields": {
                    "llama.rope.scaling.type": "yarn",
                    "llama.rope.scaling.factor": 4.0,
                    "llama.rope.scaling.original_context_length": 64,
                }
            },
        ),
    ],
)
def test_positions_are_scaled_as_the_file_says(tmp_path: Path, config: Any, parts: dict[str, Any]) -> None:
    path = write_gguf(tmp_path / "m.gguf", **parts)
    found = logits(load(path), LONG)
    ours = transformers.AutoConfig.from_pretrained(tmp_path, gguf_file="m.gguf")
    plain = own_logits(tmp_path, LONG, gguf_file="m.gguf", config=ours)
    ours.rope_parameters = config.rope_parameters
    assert close(found, own_logits(tmp_path, LONG, gguf_file="m.gguf", config=ours))
    assert not close(found, plain)


def test_where_some_layers_attend_to_a_window_only_the_others_scale_positions(tmp_path: Path) -> None:
    parts = {"gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 8.0}
    path = write_gguf(tmp_path / "m.gguf", "gemma3", fields=parts)
    config = transformers.Gemma3TextConfig()
    plain = {name: dict(settings) for name, settings in config.rope_parameters.items()}
    complete(path, read_header(path), config)
    scaled = plain["full_attention"] | {"rope_type": "linear", "factor": 8.0}
    assert config.rope_parameters == plain | {"full_attention": scaled}


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"without": [DOWN]}, r"1 missing: model\.layers\.1\.mlp\.down_proj\.weight"),
        ({"without": ["token_embd.weight"]}, r"1 missing: model\.embed_tokens\.weight"),
        ({"layers": 3}, r"9 missing: model\.layers\.2\.input_layernorm\.weight, .*, and 5 more"),
        ({"layers": 1}, r"9 tensors of .* have no place in a LlamaForCausalLM .*: blk\.1\..*, and 5 more"),
        ({"tensors": {"blk.0.attn_q.bias": torch.ones(64)}}, r"1 tensors of .* have no place .*: blk\.0\.attn_q\.bias"),
        ({"tensors": {DOWN: torch.ones(64, 32)}}, r"1 of another shape: .*down_proj.weight \[64, 32\] instead of"),
        (
            {"tensors": {"rope_freqs.weight": torch.ones(8) * 3}},
            "scales position embeddings in another way than Llama 3",
        ),
        (
            {"fields": {"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 4.0}},
            "not supported .longrope",
        ),
        ({"without": ["tokenizer.ggml.model"]}, r"lacks a part of its tokenizer: tokenizer\.ggml\.model;"),
        ({"without": ["tokenizer.ggml.merges"]}, r"lacks a part of its tokenizer: tokenizer\.ggml\.merges;"),
        (
            {"without": ["tokenizer.ggml.token_type"], "fields": {"tokenizer.chat_template": "{{ messages }}"}},
            r"lacks a part of its tokenizer: tokenizer\.ggml\.token_type;",
        ),
        ({"fields": {"general.name": "mistral"}}, "no names for the tensors of the family mistral; use the "),
        ({"fields": {"split.count": 3}}, "is one of 3 parts of a model; join them with"),
    ],
)
def test_a_gguf_that_would_be_read_in_part_is_refused_at_each_load(
    tmp_path: Path, parts: dict[str, Any], words: str
) -> None:
    path = write_gguf(tmp_path / "m.gguf", **parts)
    for _ in range(2):
        with pytest.raises(ModelLoadFailed, match=words):
            load(path)


@pytest.mark.parametrize("left", [0.001, 0.05, 0.5, 0.99])
def test_a_truncated_gguf_is_named(tmp_path: Path, left: float) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    content = path.read_bytes()
    path.write_bytes(content[: int(left * len(content))])
    with pytest.raises(ModelLoadFailed, match=r"m\.gguf is truncated"):
        load(path)


def test_a_damaged_header_raises_nothing_but_its_refusal(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    content = path.read_bytes()
    for place in range(0, 2000, 13):
        path.write_bytes(content[:place] + b"\xff" * 8 + content[place + 8 :])
        with suppress(UnfitFiles):  # a few bytes only change a name
            read_header(path)


def test_a_pointer_of_git_lfs_is_no_gguf(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ModelLoadFailed, match="is only a pointer of Git LFS"):
        load(path)
