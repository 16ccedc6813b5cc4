"""A cached fact about a model counts only while everything that it depends on is the same."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the driver runs torch models (extra `local`)")

from ipc.errors import ModelLoadFailed  # noqa: E402
from kernel.drivers.protocol import Load  # noqa: E402
from kernel.drivers.transformers import conversion, model_files, tuning_cache, weights  # noqa: E402
from kernel.drivers.transformers.conversion import converted  # noqa: E402
from kernel.drivers.transformers.model_builder import Model  # noqa: E402
from kernel.drivers.transformers.model_files import ModelFiles  # noqa: E402
from kernel.drivers.transformers.options import Options  # noqa: E402
from kernel.drivers.transformers.tuning_cache import get_or_measure  # noqa: E402
from tests.support.tiny import build  # noqa: E402

HOUR = 3600 * 10**9
MIDDLE = 3 << 19  # a place in a file of 3 MiB that is far from both ends


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as old when they are written, so that no test waits until their digests may be cached."""
    monkeypatch.setattr(model_files, "RECENT_NS", -HOUR)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are hashed."""
    names: list[str] = []
    digest = model_files._digest

    def counted(path: Path) -> str:
        names.append(path.name)
        return digest(path)

    monkeypatch.setattr(model_files, "_digest", counted)
    return names


def save(folder: Path, **changes: Any) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    build("Llama", **changes).save_pretrained(folder)
    words = WordLevel({f"w{number}": number for number in range(97)}, unk_token="w0")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), eos_token="w5")
    tokenizer.chat_template = "{% for message in messages %}w1{% endfor %}"
    tokenizer.save_pretrained(folder)


def load(source: Path | str, cache: Path) -> Model:
    options = Options(dtype="float32", kv_memory=10**7, deterministic=False)  # so no trials run
    return weights.load(Load("tiny", str(cache), 50), source, options, lambda stage: None)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite(path: Path, place: int, content: bytes) -> None:
    """Write `content` into the file, whose size and modification time stay the same."""
    before = path.stat()
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # in a later tick of the file system's clock
        with path.open("r+b") as file:
            file.seek(place)
            file.write(content)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_an_edited_list_of_end_tokens_counts_from_the_next_load_on(folder: Path, tmp_path: Path) -> None:
    assert load(folder, tmp_path / "cache").tokenizer.ends == {2, 5}
    edit(folder / "generation_config.json", eos_token_id=[2, 7])
    assert load(folder, tmp_path / "cache").tokenizer.ends == {2, 5, 7}


def test_folders_with_equal_weights_and_other_settings_share_nothing(folder: Path, tmp_path: Path) -> None:
    first = load(folder, tmp_path / "cache")
    shutil.copytree(folder, tmp_path / "copy")
    edit(tmp_path / "copy" / "generation_config.json", eos_token_id=[9])
    second = load(tmp_path / "copy", tmp_path / "cache")
    assert (first.tokenizer.ends, second.tokenizer.ends) == ({2, 5}, {2, 5, 9})
    assert first.identity != second.identity


def test_a_copy_of_a_model_is_the_same_model(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("a text for people")
    first, second = load(folder, tmp_path / "cache"), load(tmp_path / "copy", tmp_path / "cache")
    assert (first.identity, first.fingerprint) == (second.identity, second.fingerprint)
    assert len([*(tmp_path / "cache").glob("outline-*")]) == 1


CHANGES: dict[str, Callable[[Path], Any]] = {
    "the tokenizer": lambda folder: rewrite(
        folder / "tokenizer.json", (folder / "tokenizer.json").read_text().index('"w3"'), b'"q3"'
    ),
    "the chat template": lambda folder: (folder / "chat_template.jinja").write_text("w2"),
    "a further chat template": lambda folder: (
        (folder / "additional_chat_templates").mkdir()
        or (folder / "additional_chat_templates" / "tool_use.jinja").write_text("w2")
    ),
    "the tokenizer's settings": lambda folder: edit(folder / "tokenizer_config.json", eos_token="w6"),
    "the configuration": lambda folder: edit(folder / "config.json", rms_norm_eps=0.5),
    "an adapter": lambda folder: (folder / "adapter_config.json").write_text("{}"),
    "a weight, with the same size and time": lambda folder: rewrite(
        folder / "model.safetensors", (folder / "model.safetensors").stat().st_size // 2, b"\1" * 64
    ),
    "a second file of weights": lambda folder: shutil.copy(folder / "model.safetensors", folder / "old.safetensors"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_is_another_one_after_a_change_of(change: str, folder: Path, tmp_path: Path) -> None:
    before = ModelFiles(folder, tmp_path / "cache")
    assert not before.changed
    CHANGES[change](folder)
    assert before.changed
    assert ModelFiles(folder, tmp_path / "cache").digest != before.digest


def test_pickles_count_where_transformers_reads_them_whatever_lies_beside(folder: Path, tmp_path: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"the weights")
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    before = ModelFiles(folder, tmp_path / "cache").digest
    (folder / "pytorch_model.bin").write_bytes(b"others")
    assert ModelFiles(folder, tmp_path / "cache").digest != before


def test_files_are_hashed_once(folder: Path, tmp_path: Path, hashed: list[str]) -> None:
    stages: list[str] = []
    first = ModelFiles(folder, tmp_path / "cache", stages.append)
    assert {"model.safetensors", "config.json", "tokenizer.json"} < set(hashed)
    assert stages == ["hashing files"]
    hashed.clear()
    assert ModelFiles(folder, tmp_path / "cache", stages.append).digest == first.digest
    edit(folder / "config.json", rms_norm_eps=0.5)
    assert ModelFiles(folder, tmp_path / "cache").digest != first.digest
    assert hashed == ["config.json"]


def test_the_digest_of_a_file_that_was_just_written_is_not_cached(
    folder: Path, tmp_path: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_files, "RECENT_NS", HOUR)
    for _ in range(2):
        ModelFiles(folder, tmp_path / "cache")
    assert hashed.count("model.safetensors") == 2


def test_a_change_of_times_alone_makes_no_other_model(folder: Path, tmp_path: Path) -> None:
    files = ModelFiles(folder, tmp_path / "cache")
    os.utime(folder / "model.safetensors")
    assert not files.changed


def test_a_model_that_changes_while_it_is_loaded_is_refused_and_nothing_is_cached_about_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    through = weights.assemble

    def late(*parts: Any) -> Model:
        edit(folder / "generation_config.json", eos_token_id=[2, 7])
        return through(*parts)

    with monkeypatch.context() as patch:
        patch.setattr(weights, "assemble", late)
        with pytest.raises(ModelLoadFailed, match="files of tiny changed while the model was loaded; load it again"):
            load(folder, tmp_path / "cache")
    assert not [*(tmp_path / "cache").glob("outline-*")]
    assert load(folder, tmp_path / "cache").tokenizer.ends == {2, 5, 7}


def test_a_model_of_the_hub_is_known_by_its_files_not_by_its_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = tmp_path / "hub" / "models--someone--tiny"
    identities = []
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(folder, model / "snapshots" / commit)
        (model / "refs").mkdir(exist_ok=True)
        (model / "refs" / "main").write_text(commit)
        identities.append(load("someone/tiny", tmp_path / "cache").identity)
        size = (folder / "model.safetensors").stat().st_size
        rewrite(folder / "model.safetensors", size - 64, b"\1" * 64)
    assert identities[0] != identities[1]


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Four bytes of each file that is converted, by a conversion that takes no time."""
    contents: list[bytes] = []

    def convert(gguf: Path, folder: Path, *rest: Any) -> None:
        contents.append(gguf.read_bytes()[MIDDLE : MIDDLE + 4])
        folder.mkdir()

    monkeypatch.setattr(conversion, "_convert", convert)
    return contents


def test_a_gguf_file_whose_metadata_were_edited_is_converted_again(tmp_path: Path, conversions: list[bytes]) -> None:
    """The ids of end tokens and the chat template of a large vocabulary are behind the first MiB of the file."""
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(bytes(3 << 20))
    first = converted(gguf, tmp_path / "cache", print)
    assert converted(gguf, tmp_path / "cache", print) == first
    rewrite(gguf, MIDDLE, b"\7\0\0\0")
    assert converted(gguf, tmp_path / "cache", print) != first
    assert conversions == [b"\0\0\0\0", b"\7\0\0\0"]


def test_a_new_conversion_replaces_that_of_the_same_path_and_no_other(tmp_path: Path, conversions: list[bytes]) -> None:
    first, second = tmp_path / "a" / "model.gguf", tmp_path / "b" / "model.gguf"
    for number, gguf in enumerate((first, second)):
        gguf.parent.mkdir()
        gguf.write_bytes(bytes([number]) * (3 << 20))
    before = [converted(gguf, tmp_path / "cache", print) for gguf in (first, second)]
    rewrite(first, MIDDLE, b"\7\0\0\0")
    after = [converted(gguf, tmp_path / "cache", print) for gguf in (first, second)]
    assert [folder.is_dir() for folder in before] == [False, True]
    assert after[1] == before[1]
    assert len(conversions) == 3


def test_a_gguf_file_is_converted_again_by_another_version_of_transformers(
    tmp_path: Path, conversions: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(bytes(3 << 20))
    first = converted(gguf, tmp_path / "cache", print)
    monkeypatch.setattr(conversion, "version", lambda package: "next")
    assert converted(gguf, tmp_path / "cache", print) != first


def test_a_trial_is_repeated_after_a_change_of_its_code_or_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def trial() -> int:
        def measure() -> int:
            made.append(1)
            return len(made)

        return get_or_measure(tmp_path / "cache", "counts", ["facts"], int, measure, "trial")

    (tmp_path / "trial.py").write_text("first")
    monkeypatch.setattr(tuning_cache, "HERE", tmp_path)
    for expected, code, capability in (
        (1, "first", "AVX2"),
        (1, "first", "AVX2"),
        (2, "next", "AVX2"),
        (3, "next", ""),
    ):
        (tmp_path / "trial.py").write_text(code)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda found=capability: found)
        tuning_cache.code.cache_clear()
        tuning_cache.machine.cache_clear()
        assert trial() == expected
    tuning_cache.code.cache_clear()
    tuning_cache.machine.cache_clear()


def test_a_change_of_the_driver_makes_other_kv(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(folder, tmp_path / "cache")
    monkeypatch.setattr("kernel.drivers.transformers.model_builder.code", lambda: "next")
    second = load(folder, tmp_path / "cache")
    assert first.identity == second.identity
    assert first.fingerprint != second.fingerprint
