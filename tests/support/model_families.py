"""Tiny random models of many families of transformers, for tests of the files that the driver loads.

`FAMILIES` has the changes to the configuration of each: what makes the family differ from others. Every weight is
random, norms and biases too, because default values hide faults. It never needs the network.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tests.support.model_matrix import VOCABULARY, WINDOW

LAYERS = 2  # one of each kind in families with alternating layers
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 192,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
}


def rope(kind: str, **changes: Any) -> dict[str, Any]:
    """The settings of position embeddings of this kind, for a model that was trained on 32 tokens."""
    known = {"rope_type": kind, "rope_theta": 10000.0, "factor": 6.0, "original_max_position_embeddings": 32}
    return {"rope_parameters": known | changes}


def model_of(kind: str, seed: int = 1, **changes: Any) -> Any:
    """A random model of the type `kind` of transformers."""
    config_class = CONFIG_MAPPING[kind]
    default = config_class()
    shape = {key: value for key, value in SHAPE.items() if hasattr(default, key)}
    if isinstance(getattr(config_class, "head_dim", None), property):
        shape.pop("head_dim", None)
    config = config_class(**shape | changes)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    randomize(model, seed)
    return model


def randomize(model: Any, seed: int) -> None:
    """Give `model` random weights whose logits lie far apart, so that the likeliest token is certain.

    Where the embeddings are the head, they are small, because such a model would repeat each token.
    """
    generator = torch.Generator().manual_seed(seed)
    head = model.get_output_embeddings().weight
    tied = head is model.get_input_embeddings().weight
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter is head:
                parameter.copy_(noise * (0.1 if tied else 1.0))
            elif parameter.ndim == 1:
                parameter.add_(0.2 * noise)
            else:
                parameter.copy_(noise * (4.0 if tied else 1.5) / parameter.shape[-1] ** 0.5)
        if isinstance(model.config.get_text_config().eos_token_id, int):
            head[SHAPE["eos_token_id"]] = 0  # so that no reply ends early


MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
LATENT = {
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 64,
}
TIED = {"tie_word_embeddings": True}
HALVES = ["sliding_attention", "full_attention"] * (LAYERS // 2)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("llama", {}),
    "Llama, tied": ("llama", TIED),
    "Llama, several ends": ("llama", {"eos_token_id": [1, *range(40, 60)]}),
    "Llama, one kv head": ("llama", {"num_key_value_heads": 1}),
    "Llama, wide heads": ("llama", {"head_dim": 32}),
    "Llama, biases": ("llama", {"attention_bias": True}),
    "Llama, biases in the MLP": ("llama", {"mlp_bias": True}),
    "Llama, rope llama3": ("llama", rope("llama3", low_freq_factor=1.0, high_freq_factor=4.0)),
    "Llama, rope yarn": ("llama", rope("yarn")),
    "Llama, rope linear": ("llama", rope("linear")),
    "Llama, rope dynamic": ("llama", rope("dynamic")),
    "Qwen2": ("qwen2", {}),
    "Qwen2, window": ("qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    "Qwen3": ("qwen3", {}),
    "Qwen3, tied": ("qwen3", TIED),
    "Mistral": ("mistral", {"sliding_window": WINDOW}),
    "Mistral, no window": ("mistral", {"sliding_window": None}),
    "Ministral": ("ministral", {"sliding_window": WINDOW, "layer_types": HALVES}),
    "Gemma": ("gemma", TIED),
    "Gemma 2": ("gemma2", TIED | {"sliding_window": WINDOW, "query_pre_attn_scalar": 16}),
    "Gemma 2, no softcap": ("gemma2", TIED | {"sliding_window": WINDOW, "attn_logit_softcapping": None}),
    "Gemma 3": ("gemma3_text", TIED | {"sliding_window": WINDOW, "layer_types": HALVES}),
    "Gemma 3, six layers": ("gemma3_text", TIED | {"sliding_window": WINDOW, "num_hidden_layers": 6}),
    "Phi": ("phi", {}),
    "Phi 3": ("phi3", {"sliding_window": WINDOW}),
    "Phi 3, partial rotary": ("phi3", {"partial_rotary_factor": 0.5, "sliding_window": None}),
    "Phi 3, rope longrope": (
        "phi3",
        rope("longrope", short_factor=[1.0] * 8, long_factor=[2.0] * 8, factor=None) | {"sliding_window": None},
    ),
    "SmolLM3": ("smollm3", {"no_rope_layer_interval": 2}),
    "OLMo": ("olmo", {}),
    "OLMo 2": ("olmo2", {}),
    "OLMo 3": ("olmo3", {"sliding_window": WINDOW, "layer_types": HALVES}),
    "OLMoE": ("olmoe", MOE),
    "Granite": (
        "granite",
        {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.1, "logits_scaling": 0.5},
    ),
    "GPT-NeoX": ("gpt_neox", {}),
    "GPT-NeoX, no parallel residual": ("gpt_neox", {"use_parallel_residual": False}),
    "Mixtral": ("mixtral", {"num_local_experts": 4}),
    "Qwen2 MoE": ("qwen2_moe", MOE | {"shared_expert_intermediate_size": 64}),
    "Qwen3 MoE": ("qwen3_moe", MOE | {"norm_topk_prob": True}),
    "gpt-oss": ("gpt_oss", {"num_local_experts": 4, "sliding_window": WINDOW}),
    "StableLM": ("stablelm", {}),
    "StableLM, half of each head rotates": ("stablelm", {"partial_rotary_factor": 0.5}),
    "StableLM, parallel residual": ("stablelm", {"use_parallel_residual": True}),
    "Nemotron": ("nemotron", {}),
    "Nemotron, a quarter of each head rotates": ("nemotron", {"partial_rotary_factor": 0.25}),
    "StarCoder 2": ("starcoder2", {"sliding_window": WINDOW}),
    "Cohere": ("cohere", {}),
    "Cohere 2": ("cohere2", {"sliding_window": WINDOW, "layer_types": HALVES}),
    "GLM": ("glm", {}),
    "GLM 4": ("glm4", {}),
    "Seed-OSS": ("seed_oss", {}),
    "Ernie 4.5": ("ernie4_5", {}),
    "Helium": ("helium", {}),
    "HunYuan": ("hunyuan_v1_dense", {}),
    "EXAONE": ("exaone", {}),
    "InternLM 3": ("internlm3", {}),
    "EXAONE 4": ("exaone4", {"sliding_window": WINDOW, "sliding_window_pattern": 2}),
    "Arcee": ("arcee", {}),
    "Apertus": ("apertus", {}),
    "BitNet": ("bitnet", {}),
    "Persimmon": ("persimmon", {}),
    "GPT-2": ("gpt2", {}),
    "OPT": ("opt", {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    "GPT BigCode": ("gpt_bigcode", {"num_key_value_heads": 1}),
    "GPT-J": ("gptj", {"rotary_dim": 8}),
    "GPT-Neo": ("gpt_neo", {"attention_types": [[["global", "local"], 1]], "window_size": WINDOW}),
    "CodeGen": ("codegen", {"rotary_dim": 8}),
    "Falcon": ("falcon", {"num_kv_heads": 4}),
    "BLOOM": ("bloom", {}),
    "MPT": ("mpt", {"d_model": 64, "n_heads": 4, "n_layers": LAYERS, "max_seq_len": 192}),
    "DeepSeek V2": ("deepseek_v2", LATENT | {"num_key_value_heads": 4, "topk_method": "greedy"}),
    "DeepSeek V3": ("deepseek_v3", LATENT | {"num_key_value_heads": 4, "head_dim": 8}),
    "BERT as a decoder": ("bert", {"is_decoder": True}),
    "CTRL": ("ctrl", {"n_embd": 64, "n_head": 4, "n_layer": LAYERS, "dff": 96, "n_positions": 192}),
    "Mamba": ("mamba", {}),
    "LFM2": ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    "Qwen3-Next": ("qwen3_next", MOE | {"layer_types": ["linear_attention", "full_attention"]}),
}
