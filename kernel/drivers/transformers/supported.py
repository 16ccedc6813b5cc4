"""Decides whether the driver can run a model, by its configuration and its family, and says why not.

`__main__` calls `check_family` before heavy imports, `weights` calls `check` before transformers reads weights and
`check_numbers` after, and `conversion` calls `check_gguf` before it converts a file. A refusal is one sentence: what is
wrong, and what to do. The table in the README lists the families that were tried. This module never reads weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ipc.errors import ModelLoadFailed

LAYERS = {"full_attention", "sliding_attention"}
ROPE_BY_LENGTH = {"dynamic", "longrope"}  # with these types, a sequence's numbers would depend on the lengths of others
ENCODER = "it is an encoder: its tokens also attend to later tokens, so it cannot generate text"
ENCODER_DECODER = "it is an encoder-decoder, and the driver runs decoders only"
SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
)
FAMILY_KEYS = ("model_type", "is_encoder_decoder", "is_decoder", "attn_logit_softcapping")
ADVICE = "use a model of another family, such as Llama, Qwen 3, Mistral, Gemma 3 or Phi 3"

# The families that the driver refuses, by the reason. Families with other kinds of layers than `LAYERS` are not listed:
# their configuration says so.
REASONS: dict[str, str] = {
    "its attention is part of its own code, so the driver cannot replace it": (
        "big_bird bigbird_pegasus bloom cpmant falcon git gpt_neo gpt_neox_japanese megatron-bert mpt openai-gpt "
        "prophetnet reformer rembert roformer xglm xlm xlnet"
    ),
    "it has a state besides the keys and values of its tokens": "falcon_h1 rwkv xlstm",
    "its attention has sinks": "flint gpt_oss granite_swa granitemoe_swa mimo_v2_flash",
    "its keys and values have different sizes": (
        "axk1 deepseek_v2 deepseek_v3 glm4_moe_lite longcat_flash minicpm3 sarvam_mla youtu"
    ),
    "its layers have heads of different sizes": "gemma4 gemma4_text gemma4_unified gemma4_unified_text",
    "it drafts for another model": "gemma4_assistant gemma4_unified_assistant",
    "it combines two attentions in a layer": "diffllama",
    "its experts compute attention": "jetmoe",
    "it runs its layers several times": "hrm_text",
    "it has an attention window only in its cache": "moshi",
    "its attention masks tokens by their content": "doge",
    "it reads a second input besides its tokens": "blt mllama musicgen musicgen_melody trocr",
    "it counts positions in another way": (
        "blenderbot blenderbot-small camembert data2vec-text marian mbart mvp pegasus plbart roberta "
        "roberta-prelayernorm xlm-roberta xlm-roberta-xl xmod"
    ),
}
FAMILIES = {family: reason for reason, families in REASONS.items() for family in families.split()}
# Refused unless their configuration sets `attn_logit_softcapping` to null.
SOFTCAP_FAMILIES = {"gemma2", "vaultgemma"}
SOFTCAP = "its attention limits its scores (softcap: attn_logit_softcapping)"
# Encoders, unless their configuration has `is_decoder`. Their attention sees later tokens.
ENCODERS = {
    "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "rembert",
    "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip
# The architectures of GGUF files that transformers reads and the driver refuses, by their names in the files.
GGUF_REASONS = {
    ENCODER_DECODER: "t5 t5encoder umt5",
    ENCODER: "bert nomic-bert",
    "it has layers that are no attention": "lfm2 lfm2moe mamba qwen35 qwen35moe",
}
GGUF_FAMILIES = {family: reason for reason, families in GGUF_REASONS.items() for family in families.split()}


def refuse(name: str, family: str, reason: str) -> ModelLoadFailed:
    """The error that refuses the model called `name`, which is of `family`."""
    return ModelLoadFailed(f"{name} (family {family}) cannot run: {reason}; {ADVICE}")


def check_settings(name: str, settings: Mapping[str, Any]) -> None:
    """Refuse a family that transformers does not include, by the contents of config.json. Raises `ModelLoadFailed`."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    family = settings.get("model_type")
    if family in CONFIG_MAPPING_NAMES:
        for part in (settings, settings.get("text_config")):
            if isinstance(part, dict):
                _check_sizes(name, part)
        return
    if settings.get("auto_map"):
        raise ModelLoadFailed(
            f"{name} runs on Python code of its own (auto_map in config.json), and llmosd never runs code from the "
            "folder of a model; use a model of a family that transformers includes"
        )
    if not isinstance(family, str) or not family:
        raise ModelLoadFailed(
            f"the config.json of {name} has no model_type, so its family is unknown; use the model's own config.json"
        )
    raise ModelLoadFailed(
        f"{name} is of the family {family!r}, which transformers {version('transformers')} does not include; update "
        "transformers (pip install -U transformers), or use a model of another family"
    )


def check_family(name: str, settings: Mapping[str, Any]) -> None:
    """Refuse a family that the driver cannot run, by the contents of config.json. Raises `ModelLoadFailed`.

    It imports nothing heavy, so `__main__` calls it first.
    """
    family = settings.get("model_type")
    if not isinstance(family, str):
        return
    if settings.get("is_encoder_decoder"):
        raise refuse(name, family, ENCODER_DECODER)
    if family in ENCODERS and not settings.get("is_decoder"):
        raise refuse(name, family, ENCODER)
    if family in SOFTCAP_FAMILIES and settings.get("attn_logit_softcapping", True) is not None:
        raise refuse(name, family, SOFTCAP)
    if family in FAMILIES:
        raise refuse(name, family, FAMILIES[family])


def check(name: str, config: Any) -> None:
    """Refuse a model that the driver cannot run, by its configuration. Raises `ModelLoadFailed`."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    family = config.model_type
    check_family(name, {key: getattr(config, key, None) for key in FAMILY_KEYS})
    if family not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise refuse(name, family, "models of this family do not generate text from text")
    text = config.get_text_config()
    check_family(name, {key: getattr(text, key, None) for key in FAMILY_KEYS})
    _check_layers(name, family, text)
    _check_quantization(name, getattr(config, "quantization_config", None))
    for size in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "max_position_embeddings"):
        if getattr(text, size, None) is None:
            raise refuse(name, family, f"its configuration has no {size}")


def _check_sizes(name: str, settings: Mapping[str, Any]) -> None:
    for size in SIZES:
        value = settings.get(size)
        if isinstance(value, str | float | bool) or (isinstance(value, int) and value < 1):
            raise ModelLoadFailed(
                f"the config.json of {name} says {size} = {value!r}, which must be a positive whole number; correct it"
            )


def _check_layers(name: str, family: str, config: Any) -> None:
    """Refuse features whose effect `hf_backend.check` cannot show, because its text is too short."""
    layers = set(getattr(config, "layer_types", None) or ()) - LAYERS
    if layers:
        raise refuse(name, family, f"it has layers of type {', '.join(sorted(layers))}")
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = ROPE_BY_LENGTH & {part.get("rope_type") for part in (rope, *rope.values()) if isinstance(part, dict)}
    if kinds:
        raise refuse(
            name, family, f"its position embeddings ({', '.join(sorted(kinds))}) depend on the length of a sequence"
        )


def _check_quantization(name: str, quantization: Any) -> None:
    if quantization is None:
        return
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    settings = quantization if isinstance(quantization, dict) else quantization.to_dict()
    method = settings.get("quant_method")
    method = getattr(method, "value", method)
    known = method in AUTO_QUANTIZATION_CONFIG_MAPPING or method == "bitsandbytes"
    if not known:
        raise ModelLoadFailed(
            f"the weights of {name} are quantized by {method!r}, which transformers {version('transformers')} does not "
            "read; use the weights without quantization, or a GGUF file"
        )


def check_numbers(name: str, model: Any) -> None:
    """Refuse weights with a NaN or an infinity, and name the first such tensor. Raises `ModelLoadFailed`."""
    for tensor, values in model.named_parameters():
        if values.is_floating_point() and not values.sum().isfinite() and not values.isfinite().all():
            count = int((~values.isfinite()).sum())
            raise ModelLoadFailed(
                f"the weights of {name} are damaged: {count} of the {values.numel()} numbers of {tensor} are NaN or "
                "infinite; download the model again"
            )


def check_gguf(path: Path, fields: dict[str, Any]) -> None:
    """Refuse a GGUF file, of which `fields` are the metadata, that is no model, or of a family that cannot run.

    Raises `ModelLoadFailed`.
    """
    family, kind = str(fields["general.architecture"]), fields.get("general.type", "model")
    if kind != "model":
        raise ModelLoadFailed(f"{path} holds no model but a part for one ({kind}); name the file of the model")
    reason = GGUF_FAMILIES.get(family) or FAMILIES.get(family) or FAMILIES.get(family.replace("-", "_"))
    if family in SOFTCAP_FAMILIES:
        reason = SOFTCAP  # transformers does not read the setting from a GGUF file
    if reason is not None:
        raise refuse(str(path), family, reason)
