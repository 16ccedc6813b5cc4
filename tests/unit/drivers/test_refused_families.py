"""Models that the driver cannot run are refused in one sentence that names the cause and says what to do.

The table of families in the driver's README is compared with the code, and for a sample with transformers itself.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the driver runs torch models (extra `local`)")
transformers = pytest.importorskip("transformers", reason="the driver runs transformers models (extra `local`)")

from ipc.errors import ModelLoadFailed  # noqa: E402
from kernel.drivers.transformers import load_errors, supported  # noqa: E402
from kernel.drivers.transformers.forward import PackedForward  # noqa: E402
from kernel.drivers.transformers.gguf_header import read_header  # noqa: E402
from kernel.drivers.transformers.hf_backend import HFBackend, check  # noqa: E402
from kernel.drivers.transformers.kv import Geometry, KVMemory  # noqa: E402
from tests.support.paths import ROOT  # noqa: E402
from tests.support.tiny import build, geometry_of  # noqa: E402

README = ROOT / "kernel/drivers/transformers/README.md"
# A model of each of these families is built by the long form of the trial.
SAMPLE = ["Arcee", "Cohere2", "Exaone4", "Glm4", "Granite", "Helium", "Nemotron", "Olmo3", "Phi3", "SeedOss",
          "SmolLM3", "StableLm", "Starcoder2"]  # fmt: skip


def table() -> dict[str, list[str]]:
    """The families of each row of the table, by the first words of the row."""
    rows = re.findall(r"^\| (\S+ \S+).*? \| (.*) \|$", README.read_text(), re.MULTILINE)
    return {name: re.findall(r"`([\w-]+)`", families) for name, families in rows}


def refusal(config: Any) -> str:
    with pytest.raises(ModelLoadFailed) as raised:
        supported.check("tiny", config)
    return raised.value.message


def configuration(family: str, **changes: Any) -> Any:
    return transformers.AutoConfig.for_model(family, **changes)


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("falcon", "its attention is part of its own code"),
        ("gpt_neo", "its attention is part of its own code"),
        ("bloom", "its attention is part of its own code"),
        ("mpt", "its attention is part of its own code"),
        ("whisper", "it is an encoder-decoder"),
        ("musicgen", "it is an encoder-decoder"),  # its configuration has two texts
        ("t5", "it is an encoder-decoder"),
        ("bert", "it is an encoder: its tokens also attend to later tokens"),
        ("clip", "models of this family do not generate text"),
        ("mamba", "it has layers of type linear_attention"),
        ("gpt_oss", "its attention has sinks"),
        ("deepseek_v3", "its keys and values have different sizes"),
    ],
)
def test_a_family_that_cannot_run_is_refused_by_its_configuration(family: str, words: str) -> None:
    message = refusal(configuration(family))
    assert message == f"tiny (family {family}) cannot run: {message.partition(': ')[2]}"
    assert words in message
    assert message.endswith(supported.ADVICE)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model_type": "falcon"}, "its attention is part of its own code"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "it is an encoder-decoder"),
        ({"model_type": "bert"}, "it is an encoder"),
    ],
)
def test_a_known_family_is_refused_before_transformers_is_imported(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelLoadFailed, match=words):
        supported.check_family("tiny", settings)
    supported.check_family("tiny", {"model_type": "llama"})
    supported.check_family("tiny", {"model_type": ["llama"]})


def test_a_family_whose_softcap_is_turned_off_is_not_refused() -> None:
    supported.check_family("tiny", {"model_type": "gemma2", "attn_logit_softcapping": None})
    supported.check("tiny", configuration("gemma2", attn_logit_softcapping=None))
    assert "its attention limits its scores (softcap" in refusal(configuration("gemma2"))
    with pytest.raises(ModelLoadFailed, match="softcap"):
        supported.check_family("tiny", {"model_type": "gemma2"})  # the setting's default is a limit


def test_an_encoder_that_was_trained_as_a_decoder_is_not_refused() -> None:
    supported.check("tiny", configuration("bert", is_decoder=True))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model_type": "x9", "auto_map": {"AutoConfig": "x.X"}}, "Python code of its own (auto_map in config.json)"),
        ({"model_type": "llama9"}, "is of the family 'llama9', which transformers "),
        ({}, "has no model_type"),
        ({"model_type": "llama", "num_attention_heads": 0}, "says num_attention_heads = 0, which must be a positive"),
        ({"model_type": "llama", "hidden_size": "64"}, "says hidden_size = '64', which must be a positive"),
        ({"model_type": "gemma3", "text_config": {"vocab_size": -1}}, "says vocab_size = -1, which must be a positive"),
    ],
)
def test_settings_that_transformers_cannot_use_are_refused_by_name(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelLoadFailed, match=re.escape(words)):
        supported.check_settings("tiny", settings)


def test_code_of_a_family_that_transformers_includes_is_not_needed() -> None:
    supported.check_settings("tiny", {"model_type": "phi3", "auto_map": {"AutoConfig": "x.X"}})


def test_an_unknown_quantization_is_refused() -> None:
    config = build("Llama").config
    config.quantization_config = {"quant_method": "mystery"}
    assert "are quantized by 'mystery'" in refusal(config)


def test_a_nan_is_found_and_its_tensor_is_named() -> None:
    model = build("Llama")
    supported.check_numbers("tiny", model)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = torch.nan
        model.model.layers[1].mlp.up_proj.weight[5, 4] = torch.inf
    with pytest.raises(ModelLoadFailed, match=r"2 of the 6144 numbers of model\.layers\.1\.mlp\.up_proj\.weight"):
        supported.check_numbers("tiny", model)


def memory_for(model: Any) -> KVMemory:
    return KVMemory(geometry_of(model), 256, 2, torch.device("cpu"), 10**7)


def why_packed_steps_fail(model: Any) -> str:
    memory = memory_for(model)
    with pytest.raises(NotImplementedError) as raised:
        check(model, PackedForward(HFBackend(model), memory), memory, 1e-4)
    assert memory.used == 0
    return str(raised.value)


def test_tokens_that_see_later_tokens_are_noticed_however_small_the_weights_are() -> None:
    model = build("Llama", initializer_range=1e-4)
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    assert "also attend to later tokens" in why_packed_steps_fail(model)


def test_an_attention_window_that_does_not_reach_the_driver_is_noticed() -> None:
    """The text of the comparison is shorter than the window, so its logits are equal."""
    windows = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
    model = build("Qwen2Moe", num_experts=2, num_experts_per_tok=1, **windows)
    assert "an attention window of None tokens, and by its configuration 8" in why_packed_steps_fail(model)


def test_a_model_that_computes_its_attention_itself_is_noticed() -> None:
    model = build("Llama")
    for layer in model.model.layers:
        layer.self_attn.forward = lambda hidden_states, **rest: (hidden_states, None)
    assert "its attention is part of its own code" in why_packed_steps_fail(model)


def test_heads_of_which_the_configuration_says_another_number_are_noticed() -> None:
    model = build("Llama")
    memory = KVMemory(Geometry(2, 4, 16, torch.float32), 256, 2, torch.device("cpu"), 10**7)
    with pytest.raises(NotImplementedError, match=r"layer 0 has 2 kv heads of 16 numbers, .* says 4 of 16"):
        check(model, PackedForward(HFBackend(model), memory), memory, 1e-4)


def test_logits_that_are_not_finite_are_called_so() -> None:
    model = build("Llama")
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    assert why_packed_steps_fail(model) == "some of its own logits are not finite"


def gguf_file(path: Path, architecture: str, **metadata: Any) -> Path:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in metadata.items():
        add = writer.add_string if isinstance(value, str) else writer.add_uint16
        add(name.replace("_", "."), value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("architecture", "metadata", "words"),
    [
        ("t5", {}, "it is an encoder-decoder"),
        ("bert", {}, "it is an encoder"),
        ("falcon", {}, "its attention is part of its own code"),
        ("mamba", {}, "it has layers that are no attention"),
        ("gpt-oss", {}, "its attention has sinks"),
        ("llama", {"general_type": "adapter"}, "holds no model but a part for one (adapter)"),
    ],
)
def test_a_gguf_file_that_cannot_run_is_refused_before_it_is_converted(
    tmp_path: Path, architecture: str, metadata: dict[str, Any], words: str
) -> None:
    path = gguf_file(tmp_path / "x.gguf", architecture, **metadata)
    with pytest.raises(ModelLoadFailed, match=re.escape(words)):
        supported.check_gguf(path, read_header(path).fields)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("GGUF model with architecture rwkv7 is not supported yet."), "of the architecture rwkv7; use"),
        (
            ValueError("Please pass `trust_remote_code=True` to allow custom code to be run."),
            "llmosd never runs such code",
        ),
        (ValueError("Couldn't instantiate the backend tokenizer from one of:\n(1) x"), "has no tokenizer.json"),
        (KeyError("llmosd"), "its attention is part of its own code"),
        (KeyError("swiglu9"), "its config.json lacks 'swiglu9', or has it as a value that transformers does not know"),
        (ImportError("AWQ requires gptqmodel"), "needs a package that is not installed (AWQ requires gptqmodel)"),
        (MemoryError(), "there is not enough memory; free some"),
        (ValueError("Some\n\x1b[1mreport\x1b[0m of\n lines."), "ValueError: Some report of lines"),
        (ValueError("One sentence. " + "x" * 1000), "ValueError: One sentence. ..."),
    ],
)
def test_the_errors_of_libraries_become_one_line(error: Exception, words: str) -> None:
    message = load_errors.explain(error)
    assert words in message
    assert "\n" not in message
    assert len(message) <= load_errors.MAX_LENGTH + 4


def test_a_text_that_is_too_long_ends_with_a_sentence() -> None:
    assert load_errors.cut("A first one. A second one. A third.", 30) == "A first one. A second one"
    assert load_errors.cut("no sentence ends in these words", 20) == "no sentence ends in ..."


def test_the_table_of_the_readme_lists_each_family_once_and_agrees_with_the_code() -> None:
    rows = table()
    listed = [family for families in rows.values() for family in families if family != "is_decoder"]
    assert len(listed) == len(set(listed))
    assert not {*rows["logits and"], *rows["equal as"], *rows["refused by"]} & {*supported.FAMILIES} - {
        *rows["refused by"]
    }
    assert {*rows["equal as"]} - {"is_decoder"} <= supported.ENCODERS


@pytest.mark.soak(short=False)
def test_the_table_of_the_readme_is_true_of_every_configuration() -> None:
    names = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    rows = table()
    equal, decoders = {*rows["logits and"]}, {*rows["equal as"]}
    for family in names:
        try:
            config = configuration(family)
        except Exception:
            continue
        try:
            supported.check("tiny", config)
            runs = True
        except ModelLoadFailed:
            runs = False
        if family in equal:
            assert runs, family
        elif family in decoders:
            assert not runs, family


@pytest.mark.soak(short=False)
@pytest.mark.parametrize("name", SAMPLE)
def test_families_of_the_table_compute_the_logits_of_transformers(name: str) -> None:
    model = build(name, pad_token_id=0)
    memory = memory_for(model)
    check(model, PackedForward(HFBackend(model), memory), memory, 1e-4)
