"""Files that are not what they are called are refused before anything heavy is imported, with advice."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ipc.errors import LlmosError, ModelLoadFailed, ModelNotFound
from kernel.drivers.transformers import file_checks
from kernel.drivers.transformers.source import locate

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"
PAGE = b"<!DOCTYPE html><html><title>404</title></html>"
TENSORS = {"__metadata__": {"format": "pt"}, "w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
INDEX = "model.safetensors.index.json"


def safetensors(header: Any, data: bytes = b"\0" * 8) -> bytes:
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files of a model, as far as they are looked at."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    (folder / "model.safetensors").write_bytes(safetensors(TENSORS))
    return folder


def refusal(path: Path | str) -> LlmosError:
    with pytest.raises(LlmosError) as raised:
        file_checks.check(locate(str(path)))
    assert "\n" not in raised.value.message
    return raised.value


def test_a_whole_folder_and_a_gguf_file_pass(folder: Path) -> None:
    file_checks.check(locate(str(folder)))
    (folder / "x.gguf").write_bytes(b"GGUF\3\0\0\0")
    file_checks.check(locate(str(folder / "x.gguf")))
    file_checks.check(locate("someone/a-model"))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "x.gguf"])
@pytest.mark.parametrize(
    ("content", "advice"),
    [
        (POINTER, "is only a pointer of Git LFS; run `git lfs pull` in "),
        (PAGE, "is a web page, not the file of a model; download the file itself"),
        (b"", "is empty; download it again"),
    ],
)
def test_the_leftovers_of_a_failed_download_are_called_by_their_name(
    folder: Path, name: str, content: bytes, advice: str
) -> None:
    path = folder / name
    path.write_bytes(content)
    error = refusal(path if name == "x.gguf" else folder)
    assert error.message.startswith(f"{path} {advice}")


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def remove(*names: str) -> Callable[[Path], object]:
    return lambda folder: [(folder / name).unlink() for name in names]


def shards(folder: Path, *present: str) -> None:
    (folder / "model.safetensors").unlink()
    files = ["model-1.safetensors", "model-2.safetensors"]
    (folder / INDEX).write_text(json.dumps({"weight_map": dict(zip("ab", files, strict=True))}))
    for name in present:
        (folder / name).write_bytes(safetensors(TENSORS))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            write("config.json", b'{"model_type": '),
            r"config\.json is not valid JSON .*; correct it or download it again",
        ),
        (write("config.json", b"[1]"), r"config\.json holds no JSON object"),
        (write("config.json", b'{"a": "\xff"}'), r"config\.json is not valid JSON"),
        (write("generation_config.json", b"{"), r"generation_config\.json is not valid JSON"),
        (write("tokenizer_config.json", b"{"), r"tokenizer_config\.json is not valid JSON"),
        (write("tokenizer.json", b"words"), r"tokenizer\.json is not valid JSON"),
        (remove("tokenizer.json"), r"holds no tokenizer; copy tokenizer\.json"),
        (remove("model.safetensors"), r"holds no weights: .*; copy model\.safetensors"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "weights.h5"),
            r"holds no weights: .* \(weights\.h5 is of another kind\)",
        ),
        (write("model.safetensors", b"PK\3\4" + b"x" * 99), "is truncated or damaged, or is no safetensors file"),
        (write("model.safetensors", b"\xff" * 8 + b"{}"), "is truncated or damaged, or is no safetensors file"),
        (write("model.safetensors", safetensors(TENSORS, b"\0" * 5)), "is truncated: its last 3 bytes are missing"),
        (write("model.safetensors", safetensors({"w": {"shape": []}})), r"the header of \S+ is damaged"),
        (write("model.safetensors", b"\3\0\0\0\0\0\0\0{x}"), r"the header of \S+ is damaged"),
        (shards, r"lacks 2 of the 2 files in model\.safetensors\.index\.json: model-1\.safetensors, model-2"),
        (lambda folder: shards(folder, "model-1.safetensors"), r"lacks 1 of the 2 files in \S+: model-2\.safetensors;"),
        (lambda folder: [shards(folder), write(INDEX, b"{}")(folder)], r"has no `weight_map`"),
    ],
)
def test_a_damaged_folder_is_refused_with_the_name_of_the_file(
    folder: Path, damage: Callable[[Path], object], words: str
) -> None:
    damage(folder)
    error = refusal(folder)
    assert isinstance(error, ModelLoadFailed)
    assert str(folder) in error.message
    assert re.search(words, error.message)


@pytest.mark.parametrize("value", ["Infinity", "NaN", "1000000000000000019884624838656", r'"\ud83d"'])
def test_settings_that_python_reads_are_accepted_although_they_are_no_json(folder: Path, value: str) -> None:
    for name in ("config.json", "tokenizer_config.json"):
        (folder / name).write_text(f'{{"odd": {value}}}')
    assert "odd" in file_checks.check(folder)


def test_a_file_that_cannot_be_read_is_refused_by_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, *rest: Any) -> None:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(Path, "open", fail)
    assert refusal(folder).message == f"{folder / 'config.json'} cannot be read (Input/output error)"


def test_a_backup_that_is_damaged_is_not_looked_at(folder: Path) -> None:
    (folder / "backup.safetensors").write_bytes(b"")
    file_checks.check(folder)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "is empty; copy the files of the model into it"),
        (["model.Q8_0.gguf"], "to use its GGUF file, name the file: "),
        (["adapter_config.json", "adapter_model.safetensors"], "holds an adapter, not a whole model; merge it"),
        (["notes.txt"], "holds no config.json; name a folder saved by transformers, or a .gguf file"),
    ],
)
def test_a_folder_without_configuration_says_what_it_holds(tmp_path: Path, names: list[str], words: str) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"")
    error = refusal(tmp_path)
    assert isinstance(error, ModelNotFound)
    assert words in error.message


def test_a_file_of_a_folder_leads_to_the_folder(folder: Path) -> None:
    assert refusal(folder / "model.safetensors").message.endswith(f"; name its folder: {folder}")


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"PK\3\4", "is not a GGUF file"),
        (b"GGUF\1\0\0\0", "of version 1, and the driver reads versions 2 and 3"),
        (b"GGUF\0\0\0\3", "of version 50331648"),
    ],
)
def test_a_gguf_file_of_another_kind_is_refused(tmp_path: Path, head: bytes, words: str) -> None:
    (tmp_path / "x.gguf").write_bytes(head)
    assert words in refusal(tmp_path / "x.gguf").message


def test_a_file_that_this_user_may_not_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *rest: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    error = refusal(folder)
    assert error.message.startswith(f"{folder / 'config.json'} cannot be read by ")
    assert error.message.endswith("; change its permissions")


def test_a_model_without_a_path_is_refused() -> None:
    assert "has no path" in refusal("").message
