"""Which files of a folder hold the weights: those that transformers would read, unless the choice is a guess."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the driver runs torch models (extra `local`)")

from ipc.errors import ModelLoadFailed  # noqa: E402
from kernel.drivers.transformers.checkpoint import INDEX, WHOLE, UnfitFiles, some, tensors, weight_files  # noqa: E402
from tests.support.tiny_folders import write  # noqa: E402

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def hold(folder: Path, file: str, *names: str) -> None:
    write({name: torch.zeros(2) for name in names}, folder / file)


def index(folder: Path, places: dict[str, str], name: str = INDEX) -> None:
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def shards(folder: Path) -> None:
    hold(folder, FIRST, "a", "b")
    hold(folder, SECOND, "c")
    index(folder, {"a": FIRST, "b": FIRST, "c": SECOND})


def chosen(folder: Path) -> list[str]:
    return [file.name for file in weight_files(folder)]


def test_a_whole_file_is_chosen_before_others(folder: Path) -> None:
    hold(folder, WHOLE, "a")
    hold(folder, "backup.safetensors", "a")
    hold(folder, "consolidated.safetensors", "a")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    assert chosen(folder) == [WHOLE]


def test_the_index_decides_which_shards_are_chosen(folder: Path) -> None:
    shards(folder)
    hold(folder, "model-00003-of-00003.safetensors", "a")
    hold(folder, "backup.safetensors", "a")
    assert chosen(folder) == [FIRST, SECOND]
    assert set(tensors(weight_files(folder))) == {"a", "b", "c"}


def test_pickles_are_chosen_where_there_is_nothing_else(folder: Path) -> None:
    (folder / "part.bin").write_bytes(b"a pickle")
    index(folder, {"a": "part.bin"}, "pytorch_model.bin.index.json")
    assert chosen(folder) == ["part.bin"]
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    assert chosen(folder) == ["pytorch_model.bin"]


def test_a_whole_file_beside_complete_shards_is_refused(folder: Path) -> None:
    shards(folder)
    hold(folder, WHOLE, "a", "b", "c")
    with pytest.raises(UnfitFiles, match=f"two sets of weights: {WHOLE}, and the files in {INDEX} .{FIRST}, "):
        weight_files(folder)


def test_an_index_of_deleted_shards_beside_a_whole_file_is_ignored(folder: Path) -> None:
    hold(folder, WHOLE, "a")
    index(folder, {"a": FIRST, "b": SECOND})
    assert chosen(folder) == [WHOLE]
    assert set(tensors(weight_files(folder))) == {"a"}


def test_missing_shards_are_named(folder: Path) -> None:
    shards(folder)
    (folder / SECOND).unlink()
    with pytest.raises(UnfitFiles, match=f"lacks 1 of the 2 files in {INDEX}: {SECOND}"):
        weight_files(folder)


def test_a_shard_of_another_model_is_named_with_its_tensors(folder: Path) -> None:
    shards(folder)
    hold(folder, SECOND, "d")
    with pytest.raises(UnfitFiles, match=f"{SECOND} in .* lacks 1 tensors that {INDEX} says it holds: c;"):
        tensors(weight_files(folder))
    hold(folder, SECOND, "a", "c")
    with pytest.raises(UnfitFiles, match=f"holds the tensor a twice, in {FIRST} and in {SECOND}"):
        tensors(weight_files(folder))


def test_an_index_may_differ_from_its_shards_in_what_the_model_does_without(folder: Path) -> None:
    computed = ["lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq", "h.0.attn.masked_bias"]
    hold(folder, FIRST, "a")
    hold(folder, SECOND, "b", "c", "d")
    index(folder, {"a": FIRST, "b": FIRST, "c": SECOND, **dict.fromkeys(computed, SECOND)})
    assert set(tensors(weight_files(folder))) == {"a", "b", "c", "d"}


@pytest.mark.parametrize("name", ["../secret.safetensors", "/secret.safetensors", "sub/part.safetensors"])
def test_an_index_names_only_files_of_its_folder(folder: Path, name: str) -> None:
    index(folder, {"a": name})
    with pytest.raises(UnfitFiles, match=f"names files outside its folder: {name}"):
        weight_files(folder)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "\xff"])
def test_a_damaged_index_is_named(folder: Path, content: str) -> None:
    (folder / INDEX).write_text(content, "latin-1")
    with pytest.raises((UnfitFiles, ModelLoadFailed), match=INDEX):
        weight_files(folder)


def test_a_configuration_may_name_the_file(folder: Path) -> None:
    hold(folder, WHOLE, "a")
    hold(folder, "other.safetensors", "a")
    (folder / "config.json").write_text('{"transformers_weights": "other.safetensors"}')
    assert chosen(folder) == ["other.safetensors"]
    (folder / "other.safetensors").unlink()
    with pytest.raises(UnfitFiles, match=r"lacks the file other\.safetensors"):
        weight_files(folder)
    (folder / "config.json").write_text('{"transformers_weights": "../other.safetensors"}')
    with pytest.raises(UnfitFiles, match=r"no \.safetensors file of this folder"):
        weight_files(folder)


def test_the_file_that_a_configuration_names_may_be_a_link_out_of_the_folder(tmp_path: Path) -> None:
    folder, blobs = tmp_path / "snapshot", tmp_path / "blobs"  # the cache of the hub
    folder.mkdir()
    blobs.mkdir()
    hold(blobs, "0a1b", "a")
    (folder / "other.safetensors").symlink_to(blobs / "0a1b")
    (folder / WHOLE).write_bytes(b"")  # is not read
    (folder / "config.json").write_text('{"transformers_weights": "other.safetensors"}')
    assert chosen(folder) == ["other.safetensors"]


def test_a_folder_without_weights_says_which_files_it_could_mean(folder: Path) -> None:
    with pytest.raises(UnfitFiles, match=f"holds no weights: neither {WHOLE} nor {INDEX}; copy {WHOLE}"):
        weight_files(folder)
    hold(folder, "mine.safetensors", "a")
    with pytest.raises(UnfitFiles, match=r"it does hold mine\.safetensors: rename the right file"):
        weight_files(folder)
    (folder / "model-Q4_K_M.gguf").write_bytes(b"GGUF")
    (folder / "model-Q8_0.gguf").write_bytes(b"GGUF")
    with pytest.raises(UnfitFiles, match=r"name the file: .*/model-Q4_K_M\.gguf"):
        weight_files(folder)


def test_an_adapter_is_refused_with_the_way_to_merge_it(folder: Path) -> None:
    hold(folder, WHOLE, "a")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(
        UnfitFiles, match=r"holds an adapter .*merge_and_unload.*merged already, remove adapter_config\.json"
    ):
        weight_files(folder)


@pytest.mark.parametrize("file", [WHOLE, "pytorch_model.bin"])
def test_a_pointer_of_git_lfs_is_named(folder: Path, file: str) -> None:
    (folder / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ModelLoadFailed, match=f"{file} is only a pointer of Git LFS; run `git lfs pull`"):
        weight_files(folder)


@pytest.mark.parametrize("left", [0.001, 0.01, 0.1, 0.9])
def test_a_truncated_file_is_named(folder: Path, left: float) -> None:
    write({"a": torch.zeros(1000)}, folder / WHOLE)
    content = (folder / WHOLE).read_bytes()
    (folder / WHOLE).write_bytes(content[: int(left * len(content))])
    with pytest.raises(UnfitFiles, match=f"{WHOLE} is truncated"):
        tensors(weight_files(folder))


def test_a_refusal_names_the_first_few_and_counts_the_rest() -> None:
    assert some(["a", "b"]) == "a, b"
    assert some(f"t{number}" for number in range(100)) == "t0, t1, t2, t3, and 96 more"
