"""Packed steps give the tokens of the model's own forward pass, for all kinds of models; unsupported ones are refused.

Models of the Llama family run in the decoder, others through transformers' own modules.
"""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the driver runs torch models (extra `local`)")

from ipc.errors import ModelLoadFailed  # noqa: E402
from ipc.syscalls import Sampling  # noqa: E402
from kernel.drivers.protocol import Admit, Done  # noqa: E402
from kernel.drivers.transformers import supported  # noqa: E402
from kernel.drivers.transformers.forward import PackedForward  # noqa: E402
from kernel.drivers.transformers.hf_backend import NAME, HFBackend, check  # noqa: E402
from kernel.drivers.transformers.model_manifest import manifest_of  # noqa: E402
from tests.support.tiny import Kernel, Letters, Ready, build, ready  # noqa: E402

FAMILY = ["Llama", "Qwen2", "Qwen3", "Mistral"]
TOLERANCE = 1e-4


def generated(model: Any, ids: list[int]) -> list[int]:
    """The tokens that transformers itself generates after `ids`."""
    model.set_attn_implementation("eager")
    out = model.generate(torch.tensor([ids]), max_new_tokens=10, do_sample=False, pad_token_id=0, eos_token_id=[])
    found: list[int] = out[0, len(ids) :].tolist()
    return found


def call(sequence: int, ids: list[int]) -> Admit:
    return Admit(sequence, "", Sampling(max_tokens=10), 99, ids)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("decoder", [True, False])
def test_check_accepts_models_whose_attention_it_knows(name: str, decoder: bool) -> None:
    model, own = build(name), ready(name)
    memory = own.memory()
    check(model, PackedForward(own.network if decoder else HFBackend(model), memory), memory, TOLERANCE)
    assert memory.used == 0
    assert model.config._attn_implementation == NAME


@pytest.mark.parametrize(
    ("name", "changes", "decoder"),
    [
        ("Llama", {}, True),
        ("Llama", {"attention_bias": True}, True),
        ("Llama", {"mlp_bias": True}, False),
        ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}, True),
        ("Llama", {"num_attention_heads": 8, "num_key_value_heads": 1}, True),
        ("Qwen2", {}, True),
        ("Qwen3", {}, True),
        ("Mistral", {"sliding_window": 8}, True),
        ("Gemma", {}, False),
        ("Olmo2", {}, False),
        ("StableLm", {}, False),  # drops arguments on the way to its attention, as Nemotron does
        ("Nemotron", {}, False),
    ],
)
def test_packed_chunks_say_what_transformers_says(name: str, changes: dict[str, Any], decoder: bool) -> None:
    reference = build(name, **changes)
    assert (manifest_of(reference).decoder is not None) == decoder
    ids = Letters().encode("a prompt that is longer than the window, and than one chunk")
    kernel = Kernel(Ready(build(name, **changes)), most=32).run(call(1, ids), call(2, ids[:7]), call(3, ids[9:]))
    assert len(kernel.of(Done)) == 3
    assert kernel.ids == {
        1: generated(reference, ids),
        2: generated(reference, ids[:7]),
        3: generated(reference, ids[9:]),
    }


def test_a_sliding_window_is_honoured() -> None:
    ids = Letters().encode("a prompt that is longer than the window")
    with_window, without = (
        Kernel(ready("Mistral", sliding_window=window)).run(call(1, ids)).ids[1] for window in (8, None)
    )
    assert with_window != without


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("Gemma2", {"query_pre_attn_scalar": 16}, "softcap"),
        ("GptOss", {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 8}, "s_aux"),
    ],
)
def test_check_refuses_attention_that_it_does_not_know(name: str, changes: dict[str, Any], words: str) -> None:
    model = build(name, **changes)
    memory = ready("Llama").memory()
    with pytest.raises(NotImplementedError, match=words):
        check(model, PackedForward(HFBackend(model), memory), memory, TOLERANCE)
    assert memory.used == 0


def test_check_refuses_a_model_whose_numbers_differ() -> None:
    model = build("Llama")
    memory = ready("Llama").memory()
    network = ready("Llama", rms_norm_eps=0.5).network
    with pytest.raises(NotImplementedError, match="other logits"):
        check(model, PackedForward(network, memory), memory, TOLERANCE)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "dynamic"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "linear_attention"),
    ],
)
def test_configurations_that_the_check_is_too_short_for_are_refused(changes: dict[str, Any], words: str) -> None:
    config = build("Llama").config
    for name, value in changes.items():
        setattr(config, name, value)
    with pytest.raises(ModelLoadFailed, match=words):
        supported.check("tiny", config)
