"""Decides whether a model that transformers has loaded has exactly the weights of its files.

transformers fills a tensor that its files lack with random numbers, and leaves out a tensor for which the model has no
place. Both make a model that answers, but wrongly. `weights` loads through `load_exactly`, and `conversion` calls
`refuse_misfits` after its load. This module never changes a tensor.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kernel.drivers.transformers.checkpoint import COMPUTED, Tensor, UnfitFiles, in_full, some

NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")  # of a layer or an expert, in the name of a tensor
GENERATORS = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")  # the ends of their classes' names
PLAIN = {torch.float64, torch.float32, torch.bfloat16, torch.float16}
AGAIN = "Download or save the model again, with its own configuration"
FLOATS = ("F", "BF")  # the beginnings of the types of safetensors that hold fractions


def load_exactly(source: Path | str, headers: Mapping[str, Tensor], config: Any, dtype: torch.dtype) -> Any:
    """Load the model in `source`, with our attention. Raises `UnfitFiles` if its weights are not all in the files.

    `headers` has the tensors of the files by name; it is empty if they have no headers.
    """
    from transformers import AutoModelForCausalLM

    from kernel.drivers.transformers.hf_backend import NAME

    method = _method_of(config)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            str(source),
            config=config,
            dtype=dtype,
            attn_implementation=NAME,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report, so the refusal can name them
        )
    except Exception as error:
        if method is not None:
            raise UnfitFiles(_quantised(source, method, str(error))) from error
        odd = _odd_shapes(headers)
        if isinstance(error, RuntimeError) and odd:
            raise UnfitFiles(
                f"transformers cannot join tensors in {source}: {len(odd)} have another shape than those beside them: "
                f"{some(odd)}. {AGAIN}"
            ) from error
        raise
    _refuse_quantised(source, model)
    refuse_misfits(source, model, info)
    _refuse_integers(source, model, headers)
    return model


def refuse_misfits(source: Path | str, model: Any, info: Mapping[str, Any]) -> None:
    """Raise `UnfitFiles` if `model` lacks tensors, or its files hold tensors for which it has no place.

    `info` is the report of the load, transformers' `output_loading_info`. The report omits tensors whose absence or
    presence changes nothing, of which each class of models has a list: buffers that the model computes, and parts that
    only training uses. The lists lack some buffers of old versions.
    """
    missing = sorted(info["missing_keys"])
    unexpected = sorted(tensor for tensor in info["unexpected_keys"] if not COMPUTED.search(tensor))
    misshapen = sorted(
        f"{tensor} {list(found)} instead of {list(expected)}" for tensor, found, expected in info["mismatched_keys"]
    )
    faults = [
        f"{len(faulty)} {kind}: {some(faulty)}"
        for kind, faulty in (
            ("missing", missing),
            ("without a place in the model", unexpected),
            ("of another shape", misshapen),
        )
        if faulty
    ]
    faults += [str(message) for message in info.get("error_msgs") or ()][:1]
    if faults:
        raise UnfitFiles(
            f"the tensors in {source} are not those of a {type(model).__name__} as its "
            f"configuration describes it: {'; '.join(faults)}. {_advice(model, missing)}"
        )


def _advice(model: Any, missing: list[str]) -> str:
    classes = [str(known) for known in model.config.architectures or ()]
    if classes and not any(known.endswith(GENERATORS) for known in classes):
        return (
            f"They belong to a {some(classes)}, which makes no text; name a model for text generation "
            f"({type(model).__name__})"
        )
    head = model.get_output_embeddings()
    if head is not None and missing == [name for name, it in model.named_parameters() if it is head.weight]:
        return (
            "Without a head, a model makes no text. Name a model for text generation or, only if this one uses its "
            "embeddings as its head, set tie_word_embeddings to true in its config.json"
        )
    return AGAIN


def _refuse_quantised(source: Path | str, model: Any) -> None:
    """Raise `UnfitFiles` if `model` computes with quantised weights or an adapter: the packed layers would not."""
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UnfitFiles(
            f"{source} is an adapter, which llmosd does not apply; merge it into its base "
            f"model (`merge_and_unload` of peft) and name the result"
        )
    if getattr(model, "hf_quantizer", None) is None:
        return
    types = {tensor.dtype for tensor in model.state_dict().values()} - PLAIN
    if types:
        raise UnfitFiles(_quantised(source, _method_of(model.config), f"tensors of {some(map(str, types))}"))


def _method_of(config: Any) -> str | None:
    """The method by which the weights of a model with this `config` are quantised; None if they are not."""
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    found = settings.get("quant_method") if isinstance(settings, dict) else getattr(settings, "quant_method", None)
    return str(getattr(found, "value", found) or "an unnamed method")


def _quantised(source: Path | str, method: str | None, cause: str) -> str:
    """The text of a refusal of quantised weights."""
    return (
        f"the weights in {source} are quantised with {method}, which llmosd cannot run here "
        f"({cause}); use the model without quantisation, or as a GGUF file"
    )


def _refuse_integers(source: Path | str, model: Any, found: Mapping[str, Tensor]) -> None:
    """Raise `UnfitFiles` if a weight of `model` is an integer in its file: then its scale is missing."""
    if getattr(model, "hf_quantizer", None) is not None:
        return
    weights = {tensor for tensor, _ in model.named_parameters()}
    integers = sorted(tensor for tensor, header in found.items() if not header.type.startswith(FLOATS))
    integers = [tensor for tensor in integers if tensor in weights or in_full(tensor) in weights]
    if integers:
        raise UnfitFiles(
            f"{len(integers)} weights in {source} are integers of type "
            f"{found[integers[0]].type}: {some(integers)}. They are quantised, but config.json has no "
            f"`quantization_config`; use the model without quantisation, or as a GGUF file"
        )


def _odd_shapes(headers: Mapping[str, Tensor]) -> list[str]:
    """The tensors whose shape is not the usual one of tensors with the same name but for numbers."""
    alike = defaultdict(list)
    for tensor, header in headers.items():
        alike[NUMBER.sub("*", tensor)].append((tensor, tuple(header.shape)))
    odd = []
    for group in alike.values():
        ((usual, _),) = Counter(shape for _, shape in group).most_common(1)
        odd += [f"{tensor} {list(shape)}" for tensor, shape in group if shape != usual]
    return sorted(odd)
