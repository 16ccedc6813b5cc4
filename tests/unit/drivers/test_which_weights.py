"""A model runs with the weights of its files, at the first load and at later ones, or is refused with their names.

The first load goes through transformers, later ones read the files themselves; both must compute what transformers'
own model does. transformers fills missing tensors with random numbers, so none may be missing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the driver runs torch models (extra `local`)")
transformers = pytest.importorskip("transformers", reason="the driver runs transformers models (extra `local`)")

from safetensors.torch import load_file  # noqa: E402

from ipc.errors import ModelLoadFailed, ModelNotFound  # noqa: E402
from kernel.drivers.transformers import loaded_tensors, weights  # noqa: E402
from kernel.drivers.transformers.source import locate  # noqa: E402
from tests.support.tiny import SHAPE  # noqa: E402
from tests.support.tiny_folders import (  # noqa: E402
    WHOLE,
    close,
    configure,
    edit,
    load,
    logits,
    own_logits,
    save,
    save_tokenizer,
    without,
    write,
)

DOWN = "model.layers.1.mlp.down_proj.weight"
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Make = Callable[[Path], Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "model"


@pytest.fixture
def through(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The loads that went through transformers."""
    loads: list[str] = []
    load_exactly = loaded_tensors.load_exactly

    def counted(source: Any, *rest: Any) -> Any:
        loads.append(source.name)
        return load_exactly(source, *rest)

    monkeypatch.setattr(loaded_tensors, "load_exactly", counted)
    return loads


def random_like(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: torch.randn(tensor.shape) for name, tensor in tensors.items()}


def with_a_backup(folder: Path) -> None:
    save(folder)
    write(random_like(load_file(folder / WHOLE)), folder / "old.safetensors")


def in_shards(folder: Path) -> None:
    save(folder, max_shard_size="100KB")


def in_shards_with_a_stale_one(folder: Path) -> None:
    in_shards(folder)
    first = min(folder.glob("*.safetensors"))
    write(random_like(load_file(first)), folder / "model-00009-of-00009.safetensors")


def in_one_file_beside_an_index_of_deleted_shards(folder: Path) -> None:
    in_shards(folder)
    for shard in folder.glob("*.safetensors"):
        shard.unlink()
    index = (folder / "model.safetensors.index.json").read_text()
    save(folder)
    (folder / "model.safetensors.index.json").write_text(index)


def with_its_head_under_another_file(folder: Path) -> None:
    save(folder)
    (folder / WHOLE).rename(folder / "weights.safetensors")
    configure(folder, transformers_weights="weights.safetensors")


def without_prefix(folder: Path) -> None:
    save(folder, "Qwen3")
    edit(folder, lambda tensors: {name.removeprefix("model."): it for name, it in tensors.items()})


def base_whose_head_is_its_embeddings(folder: Path) -> None:  # the files of Qwen3-Embedding
    save_tokenizer(folder)
    torch.manual_seed(1)
    transformers.Qwen3Model(transformers.Qwen3Config(tie_word_embeddings=True, **SHAPE)).save_pretrained(folder)


def tied(folder: Path) -> None:
    save(folder, tie_word_embeddings=True)


def tied_with_both_in_the_file(folder: Path) -> None:
    tied(folder)
    edit(folder, lambda tensors: tensors | {HEAD: tensors[EMBEDDINGS]})


def tied_with_only_the_head_in_the_file(folder: Path) -> None:
    tied(folder)
    edit(folder, lambda tensors: without(EMBEDDINGS)(tensors) | {HEAD: tensors[EMBEDDINGS]})


def with_buffers_of_old_versions(folder: Path) -> None:
    save(folder)
    attention = "model.layers.0.self_attn"
    buffers = {f"{attention}.rotary_emb.inv_freq": torch.ones(8), f"{attention}.masked_bias": torch.tensor(-1e4)}
    edit(folder, lambda tensors: tensors | buffers)


def of_mixed_types(folder: Path) -> None:
    save(folder, dtype="bfloat16")
    types = (torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn)
    edit(folder, lambda tensors: {name: it.to(types[place % 4]) for place, (name, it) in enumerate(tensors.items())})


@pytest.mark.parametrize(
    "make",
    [
        with_a_backup,
        in_shards,
        in_shards_with_a_stale_one,
        in_one_file_beside_an_index_of_deleted_shards,
        with_its_head_under_another_file,
        without_prefix,
        base_whose_head_is_its_embeddings,
        tied,
        tied_with_both_in_the_file,
        tied_with_only_the_head_in_the_file,
        with_buffers_of_old_versions,
        of_mixed_types,
    ],
)
def test_both_loads_give_the_model_of_transformers(folder: Path, through: list[str], make: Make) -> None:
    make(folder)
    expected = own_logits(folder)
    first = logits(load(folder))
    second = logits(load(folder))
    assert through == ["model"]  # the second load read the files itself
    assert close(first, expected)
    assert torch.equal(first, second)


def quantised_to_eight_bits(folder: Path) -> None:
    save(folder)
    scale = torch.full((2, 2), 0.5)

    def change(tensors: dict[str, Any]) -> dict[str, Any]:
        query = "model.layers.0.self_attn.q_proj.weight"
        parts = {name: it.to(torch.float8_e4m3fn) for name, it in tensors.items() if "_proj" in name}
        blocks = {name: [-(-size // 32) for size in it.shape] for name, it in parts.items()}
        assert blocks[query] == list(scale.shape)
        return tensors | parts | {f"{name}_scale_inv": torch.full(size, 0.5) for name, size in blocks.items()}

    edit(folder, change)
    configure(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [32, 32]})


def in_pickles(folder: Path) -> None:
    model = save(folder)
    (folder / WHOLE).unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


@pytest.mark.parametrize("make", [quantised_to_eight_bits, in_pickles])
def test_each_load_goes_through_transformers_if_the_files_hold_other_numbers_or_no_headers(
    folder: Path, through: list[str], make: Make
) -> None:
    make(folder)
    expected = own_logits(folder)
    first = logits(load(folder))
    second = logits(load(folder))
    assert through == ["model", "model"]
    assert close(first, expected)
    assert torch.equal(first, second)


def test_the_log_says_why_each_load_goes_through_transformers(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    quantised_to_eight_bits(folder)
    load(folder)
    assert (
        "each start loads tiny through transformers: model.layers.0.mlp.down_proj.weight in" in capfd.readouterr().err
    )


def test_another_file_with_the_same_ends_is_read_again_through_transformers(
    folder: Path, through: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_facts", lambda *_: ["the key does not notice the change"])
    save(folder, tie_word_embeddings=True)
    load(folder)
    save(folder)  # with a head
    assert close(logits(load(folder)), own_logits(folder))
    assert through == ["model", "model"]


# ---- refusals


def lacks_a_matrix(folder: Path) -> None:
    save(folder)
    edit(folder, without(DOWN))


def lacks_its_head(folder: Path) -> None:
    save(folder)
    edit(folder, without(HEAD))


def has_a_head_only_by_tying(folder: Path) -> None:
    tied(folder)
    configure(folder, tie_word_embeddings=False)


def classifies(folder: Path) -> None:
    save_tokenizer(folder)
    transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**SHAPE)).save_pretrained(folder)


def classifies_with_tied_embeddings(folder: Path) -> None:
    save_tokenizer(folder)
    config = transformers.Qwen3Config(tie_word_embeddings=True, **SHAPE)
    transformers.Qwen3ForSequenceClassification(config).save_pretrained(folder)


def is_a_base_model(folder: Path) -> None:
    save_tokenizer(folder)
    transformers.LlamaModel(transformers.LlamaConfig(**SHAPE)).save_pretrained(folder)


def has_fewer_layers(folder: Path) -> None:
    save(folder)
    configure(folder, num_hidden_layers=3)


def has_more_layers(folder: Path) -> None:
    save(folder)
    configure(folder, num_hidden_layers=1)


def has_a_larger_matrix(folder: Path) -> None:
    save(folder)
    edit(folder, lambda tensors: tensors | {DOWN: torch.ones(64, 97)})


def has_one_tensor_more(folder: Path) -> None:
    save(folder)
    edit(folder, lambda tensors: tensors | {"model.layers.0.self_attn.k_scale": torch.ones(1)})


def lacks_an_expert(folder: Path) -> None:
    save(folder, "Mixtral", num_local_experts=3)
    edit(folder, without("layers.0.block_sparse_moe.experts.1.w2"))


def has_an_expert_of_another_shape(folder: Path) -> None:
    save(folder, "Mixtral", num_local_experts=3)
    expert = "model.layers.0.block_sparse_moe.experts.1.w2.weight"
    edit(folder, lambda tensors: tensors | {expert: torch.ones(64, 60)})


def holds_integers(folder: Path) -> None:
    save(folder)
    edit(folder, lambda tensors: tensors | {DOWN: tensors[DOWN].to(torch.int8)})


def is_quantised_by_an_absent_library(folder: Path) -> None:
    save(folder)
    configure(folder, quantization_config={"quant_method": "gptq", "bits": 4})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lacks_a_matrix, f"not those of a LlamaForCausalLM .*: 1 missing: {DOWN}. Download or save"),
        (lacks_its_head, f"1 missing: {HEAD}. Without a head, a model makes no text"),
        (has_a_head_only_by_tying, f"1 missing: {HEAD}.*tie_word_embeddings to true in its config.json"),
        (classifies, f"1 missing: {HEAD}; 1 without a place .*: score.weight. .*a LlamaForSequenceClassification"),
        (classifies_with_tied_embeddings, "1 without a place .*: score.weight. .*a Qwen3ForSequenceClassification"),
        (is_a_base_model, f"1 missing: {HEAD}. They belong to a LlamaModel, which makes no text"),
        (has_fewer_layers, r"9 missing: model\.layers\.2\.input_layernorm\.weight, .*, and 5 more"),
        (has_more_layers, r"9 without a place in the model: model\.layers\.1\.input_layernorm\.weight, .*, and 5 more"),
        (has_a_larger_matrix, rf"1 of another shape: {DOWN} \[64, 97\] instead of \[64, 96\]"),
        (has_one_tensor_more, r"1 without a place in the model: model\.layers\.0\.self_attn\.k_scale"),
        (lacks_an_expert, r"experts\.down_proj \[2, 64, 96\] instead of \[3, 64, 96\]"),
        (
            has_an_expert_of_another_shape,
            r"cannot join .*: 1 have another shape .*: model\.layers\.0\..*w2.weight \[64, 60\]",
        ),
        (holds_integers, f"1 weights in .* are integers of type I8: {DOWN}. .*without quantisation"),
        (is_quantised_by_an_absent_library, "quantised with gptq, which llmosd cannot run here .*as a GGUF file"),
    ],
)
def test_a_model_without_its_own_weights_is_refused_at_each_load(folder: Path, make: Make, words: str) -> None:
    make(folder)
    for _ in range(2):
        with pytest.raises(ModelLoadFailed, match=words):
            load(folder)


def test_a_folder_with_only_an_adapter_is_refused_with_the_way_to_merge_it(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelNotFound, match="holds an adapter, not a whole model; merge it with its base model"):
        locate(str(tmp_path))
