"""Loading from a folder: the first load goes through transformers, later ones use the manifest that it cached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the driver runs torch models (extra `local`)")

from ipc.errors import ModelLoadFailed  # noqa: E402
from kernel.drivers.protocol import Load  # noqa: E402
from kernel.drivers.transformers import weights  # noqa: E402
from kernel.drivers.transformers.attention import Span  # noqa: E402
from kernel.drivers.transformers.model_builder import Model  # noqa: E402
from kernel.drivers.transformers.options import Options  # noqa: E402
from tests.support.tiny import build  # noqa: E402

IDS = [5, 3, 11, 2, 7]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    save(tmp_path / "model", "Llama")
    words = WordLevel({f"w{number}": number for number in range(97)}, unk_token="w0")
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), eos_token="w5").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def save(folder: Path, name: str, **changes: Any) -> Any:
    model = build(name, **changes)
    model.save_pretrained(folder)
    return model


def load(folder: Path) -> Model:
    options = Options(dtype="float32", kv_memory=10**7)
    return weights.load(Load("tiny", str(folder.parent / "cache"), 50), folder, options, lambda stage: None)


def logits(model: Model) -> Any:
    slab = model.memory.allocate(len(IDS))
    return model.forward([Span(slab, IDS)]).logits[0]


@pytest.fixture
def transformers_loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    loads: list[str] = []
    through = weights._from_transformers

    def counted(name: str, *rest: Any) -> Any:
        loads.append(name)
        return through(name, *rest)

    monkeypatch.setattr(weights, "_from_transformers", counted)
    return loads


def test_a_second_start_needs_no_model_of_transformers(folder: Path, transformers_loads: list[str]) -> None:
    first, second = load(folder), load(folder)
    assert transformers_loads == ["tiny"]
    assert torch.equal(logits(first), logits(second))
    assert second.fingerprint == first.fingerprint
    assert second.facts == first.facts
    assert second.tokenizer.ends == first.tokenizer.ends == {2, 5}
    assert second.tokenizer.encode("w3 w4") == first.tokenizer.encode("w3 w4")


def test_what_has_changed_is_looked_at_again(folder: Path, transformers_loads: list[str]) -> None:
    first = load(folder)
    save(folder, "Llama", rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4})
    second = load(folder)
    assert transformers_loads == ["tiny", "tiny"]
    assert second.fingerprint != first.fingerprint
    assert not torch.equal(logits(first), logits(second))


def test_a_model_that_needs_its_own_modules_is_loaded_by_transformers_each_time(
    folder: Path, transformers_loads: list[str]
) -> None:
    save(folder, "Olmo2")
    assert torch.equal(logits(load(folder)), logits(load(folder)))
    assert transformers_loads == ["tiny", "tiny"]


def test_weights_that_are_damaged_are_named(folder: Path) -> None:
    load(folder)
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[:8] = b"\xff" * 8  # the length of the header
    file.write_bytes(content)
    with pytest.raises(ModelLoadFailed, match=r"cannot load tiny: .*model\.safetensors is truncated or damaged"):
        load(folder)
