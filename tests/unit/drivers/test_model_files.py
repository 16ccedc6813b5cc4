"""For every kind of model file, the driver gives the tokens of transformers, or refuses the file and says why.

The families are tiny random models; each kind of file is written from the model that it must equal. `make test` runs
all families that differ in a way of their own, and all kinds of files; `make soak` runs every family in every kind.
`python -m tests.support.model_table` prints the table.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the driver runs torch models (extra `local`)")
pytest.importorskip("transformers", reason="the driver runs transformers models (extra `local`)")
pytest.importorskip("gguf", reason="GGUF files are read with gguf (extra `local`)")

from tests.support.gguf_files import NotWritable
from tests.support.model_families import FAMILIES
from tests.support.model_files import FOLDERS, KINDS
from tests.support.model_matrix import SOME
from tests.support.model_table import cell, quick_loads

OWN_CODE = "attention is part of its own code"
REFUSED = {
    "Llama, rope dynamic": "dynamic",
    "Gemma 2": "softcap",
    "Phi 3, rope longrope": "longrope",
    "gpt-oss": "sinks",
    "GPT-Neo": OWN_CODE,
    "Falcon": OWN_CODE,
    "BLOOM": OWN_CODE,
    "MPT": OWN_CODE,
    "DeepSeek V2": "keys and values have different sizes",
    "DeepSeek V3": "keys and values have different sizes",
    "Mamba": "layers of type linear_attention",
    "LFM2": "layers of type conv",
    "Qwen3-Next": "layers of type linear_attention",
}
OFTEN = [
    "Llama",
    "Llama, several ends",
    "Llama, biases",
    "Llama, rope yarn",
    "Qwen2, window",
    "Qwen3",
    "Mistral",
    "Gemma 3",
    "Phi 3, partial rotary",
    "SmolLM3",
    "Granite",
    "GPT-NeoX",
    "Mixtral",
    *REFUSED,
]
OTHERS = [family for family in FAMILIES if family not in OFTEN]
MISSING_HEAD = "1 missing: lm_head.weight"
MISSING_MATRIX = "1 missing: model.layers.1.mlp.down_proj.weight"
SIMPLE = {"one file", "a missing matrix", "no head", "shards", "float16"}  # a head may be missing where it is tied
FILES = {
    **{("Llama, tied", kind): "" for kind in FOLDERS if kind not in SIMPLE},
    ("Llama", "no head"): MISSING_HEAD,
    ("Llama", "no prefix"): MISSING_HEAD,
    ("Llama", "a missing matrix"): MISSING_MATRIX,
    ("OLMo 2", "shards and leftovers"): "",
    ("OLMo 2", "no head"): MISSING_HEAD,
    ("OLMo 2", "a missing matrix"): MISSING_MATRIX,
    ("Llama", "GGUF Q4_1"): "",
    ("Llama", "GGUF Q4_K"): "",
    ("Qwen3", "GGUF Q8_0"): "",
    ("Phi 3, partial rotary", "GGUF F32"): "",
    ("Mistral", "GGUF F32"): "has a sliding window of 24 tokens",
    ("Llama, rope yarn", "GGUF F32"): "",
    ("Llama, biases", "GGUF F32"): "8 tensors of .* have no place",
    ("Mixtral", "GGUF F32"): "6 missing",
    ("OLMo 2", "GGUF F32"): "does not read GGUF files of the architecture olmo2",
}
UNHELPFUL = re.compile("KeyError|TypeError|AttributeError|IndexError|unexpected keyword|missing 1 required")


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with quick_loads():
        yield


@pytest.mark.parametrize("family", OFTEN)
def test_a_family_gives_the_tokens_of_transformers_or_a_named_refusal(family: str, tmp_path: Path) -> None:
    check(cell(family, "one file", tmp_path, in_full=False), REFUSED.get(family, ""))


@pytest.mark.parametrize(("family", "kind"), FILES)
def test_a_kind_of_file_gives_the_tokens_of_transformers_or_a_named_refusal(
    family: str, kind: str, tmp_path: Path
) -> None:
    check(cell(family, kind, tmp_path, in_full=False, tokens=SOME), FILES[family, kind])


@pytest.mark.soak(short=False)
@pytest.mark.parametrize("family", OTHERS)
def test_a_rarer_family_gives_the_tokens_of_transformers(family: str, tmp_path: Path) -> None:
    check(cell(family, "one file", tmp_path), "")


@pytest.mark.soak(short=False)
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("family", FAMILIES)
def test_no_kind_of_file_changes_the_tokens_of_a_family(family: str, tmp_path: Path) -> None:
    faults = {}
    for kind in KINDS:
        folder = tmp_path / kind
        folder.mkdir()
        try:
            found = cell(family, kind, folder)
        except NotWritable:
            continue
        if any(verdict != "equal" and not _is_refusal(verdict) for verdict in found):
            faults[kind] = found
    assert not faults


def check(found: list[str], refusal: str) -> None:
    """Both verdicts are "equal", or both match `refusal`."""
    if refusal:
        assert all(_is_refusal(verdict) and re.search(refusal, verdict) for verdict in found), found
    else:
        assert found == ["equal", "equal"]


def _is_refusal(verdict: str) -> bool:
    return verdict.startswith("refused: ") and not UNHELPFUL.search(verdict)
