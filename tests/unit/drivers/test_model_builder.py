"""The model that the driver builds from transformers' one: a network, KV memory, and safe counts of rows.

The trials that find the counts have their own tests (`test_batch_invariance`).
"""

from __future__ import annotations

import sys
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the driver runs torch models (extra `local`)")

from ipc.errors import ModelLoadFailed  # noqa: E402
from kernel.drivers.protocol import Load  # noqa: E402
from kernel.drivers.transformers import address_space, model_builder  # noqa: E402
from kernel.drivers.transformers.attention import BLOCK, SafeLengths, Span  # noqa: E402
from kernel.drivers.transformers.decoder import Decoder  # noqa: E402
from kernel.drivers.transformers.kv import UNIT, Geometry  # noqa: E402
from kernel.drivers.transformers.model_builder import LoadedModel, Model, assemble  # noqa: E402
from kernel.drivers.transformers.model_manifest import manifest_of  # noqa: E402
from kernel.drivers.transformers.options import Options  # noqa: E402
from kernel.drivers.transformers.tuning_cache import get_or_measure  # noqa: E402
from tests.support.tiny import CONTEXT, build  # noqa: E402

GEOMETRY = Geometry(layers=2, heads=1, head_dim=16, dtype=torch.float32)
SAFE = st.sets(st.sampled_from(range(UNIT, BLOCK + 1, UNIT))).map(lambda lengths: SafeLengths(tuple(sorted(lengths))))


class Plain:
    """The part of a transformers tokenizer that `assemble` uses."""

    eos_token_id = 5


def assembled(cache: Path, model: Any = None, options: Options | None = None, **load: Any) -> Model:
    tokenizer: Future[Any] = Future()
    tokenizer.set_result(Plain())
    message = Load("tiny", str(cache), 50, **load)
    model = build("Llama") if model is None else model
    loaded = LoadedModel(manifest_of(model), model.state_dict(), model, "weights")
    return assemble("tiny", loaded, tokenizer, options or Options(dtype="float32", kv_memory=10**7), message)


def last_logits(model: Model, tokens: list[int], generated: int) -> Any:
    """The logits after `tokens`, of which the last `generated` were generated."""
    slab = model.memory.allocate(0)
    prompt = len(tokens) - generated
    for start in range(0, prompt, 128):
        model.forward([Span(slab, tokens[start : min(prompt, start + 128)])])
    for token in tokens[prompt:]:
        output = model.forward([Span(slab, [token], generated=True)])
    model.memory.free(slab)
    return output.logits[0]


@given(SAFE, st.integers(1, 3000))
def test_a_slab_holds_all_that_any_of_its_tokens_looks_at(lengths: SafeLengths, context: int) -> None:
    memory = model_builder._memory(GEOMETRY, context, lengths, torch.device("cpu"))
    padded = [lengths.padded(count) for count in range(1, context + 1)]
    assert all(length >= count for count, length in enumerate(padded, start=1))
    assert max(padded) <= memory.capacity


def test_where_memory_is_not_mapped_there_are_no_more_slabs_than_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_builder, "_free_memory", lambda device: 10 * 1024 * GEOMETRY.token_bytes)
    device = torch.device("cpu")
    mapped = model_builder._memory(GEOMETRY, 1024, SafeLengths(), device)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "elsewhere")
        plain = model_builder._memory(GEOMETRY, 1024, SafeLengths(), device)
    assert (mapped.free_slabs, plain.free_slabs) == (address_space.MAX_SLABS, 5)  # half of the memory is for slabs


def test_a_sequence_may_fill_the_context_of_a_model(tmp_path: Path) -> None:
    model = assembled(tmp_path)
    tokens = [7 * place % 97 for place in range(CONTEXT)]
    reference = build("Llama")
    reference.set_attn_implementation("eager")
    expected = reference(torch.tensor([tokens])).logits[0, -1]
    assert torch.allclose(last_logits(model, tokens, generated=40), expected, atol=1e-3)


def test_the_facts_say_what_runs(tmp_path: Path) -> None:
    model = assembled(tmp_path, options=Options(dtype="float16", kv_memory=10**7))
    assert model.context == CONTEXT
    assert {
        name: model.facts[name] for name in ("weights", "device", "network", "vocabulary", "kv_bytes_per_token")
    } == {
        "weights": "float16",
        "device": "cpu",
        "network": "decoder",
        "vocabulary": 97,
        "kv_bytes_per_token": 2 * 2 * 2 * 16 * 4,
    }
    assert model.facts["kv_budget"] == model.memory.budget == 10**7
    assert model.memory.used == 0
    assert model.tokenizer.ends == {2, 5}  # one id of the configuration, one of the tokenizer


def test_the_kernel_decides_about_memory_before_the_options_do(tmp_path: Path) -> None:
    assert assembled(tmp_path, kv_memory=2 * 10**6).memory.budget == 2 * 10**6


def test_exactness_is_given_up_where_nobody_wants_it(tmp_path: Path) -> None:
    model = assembled(tmp_path, options=Options(deterministic=False, kv_memory=10**7))
    assert model.facts["deterministic"] is False
    assert not list(tmp_path.glob("rows-*"))


@pytest.mark.parametrize(("counts", "exact"), [((), False), ((1, 4, 16), False), ((4, 32), True)])
def test_exactness_is_given_up_where_no_step_could_hold_a_tile_and_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: tuple[int, ...], exact: bool
) -> None:
    monkeypatch.setattr("kernel.drivers.transformers.batch_invariance.safe_row_counts", lambda shapes, pack: counts)
    assert assembled(tmp_path).facts["deterministic"] is exact


def test_a_mixture_of_experts_is_not_called_deterministic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for trial in ("safe_row_counts", "safe_activation_counts", "safe_lengths"):
        monkeypatch.setattr(f"kernel.drivers.transformers.batch_invariance.{trial}", lambda *sizes: (32, 64))
    mixture = build("Mixtral", num_local_experts=2, num_experts_per_tok=1)
    assert assembled(tmp_path, mixture).facts["deterministic"] is False
    assert assembled(tmp_path, build("Olmo2")).facts["deterministic"] is True


def test_a_model_whose_numbers_differ_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadFailed, match=r"tiny \(Gemma2ForCausalLM\) cannot run in packed steps: .*softcap"):
        assembled(tmp_path, build("Gemma2", query_pre_attn_scalar=16))


def test_the_fingerprint_tells_weights_and_types_apart(tmp_path: Path) -> None:
    prints = [
        assembled(tmp_path, options=Options(dtype=dtype, kv_memory=10**7)).fingerprint
        for dtype in ("float32", "float16")
    ]
    assert len({*prints, assembled(tmp_path, options=Options(dtype="float32", kv_memory=10**7)).fingerprint}) == 2


def test_counts_are_safe_for_the_activation_of_a_model_that_runs_its_own_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def counts(activation: Any, size: int) -> tuple[int, ...]:
        asked.append((type(activation).__name__, size))
        return 16, 64

    monkeypatch.setattr("kernel.drivers.transformers.batch_invariance.safe_activation_counts", counts)
    assert assembled(tmp_path, build("Gemma")).max_rows == 64
    assert asked == [("GELUTanh", 96)]


def test_weights_that_are_packed_are_given_up(tmp_path: Path) -> None:
    llama, other = build("Llama"), build("Llama", mlp_bias=True)
    assert isinstance(assembled(tmp_path, llama).forward._network, Decoder)
    assert all(parameter.is_meta for parameter in llama.parameters())
    assert not isinstance(assembled(tmp_path, other).forward._network, Decoder)
    assert not any(type(module) is torch.nn.Linear for module in other.modules())


def test_a_trial_is_made_once_on_a_machine(tmp_path: Path) -> None:
    made = []

    def measure() -> list[int]:
        made.append(1)
        return [1, 2, len(made)]

    assert get_or_measure(tmp_path, "counts", ["facts"], list[int], measure) == [1, 2, 1]
    assert get_or_measure(tmp_path, "counts", ["facts"], list[int], measure) == [1, 2, 1]
    assert get_or_measure(tmp_path, "counts", ["other facts"], list[int], measure) == [1, 2, 2]
    (first, *_) = sorted(tmp_path.glob("counts-*.json"))
    for content in (b"[1, 2", b'"text"', b""):
        first.write_bytes(content)
    assert get_or_measure(tmp_path / "a file" / "x", "counts", [], list[int], measure) == [1, 2, 3]
