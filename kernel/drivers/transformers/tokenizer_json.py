"""The description of a fast tokenizer in JSON (`tokenizer.json`), and changed copies of it for special purposes.

`continuation` makes a tokenizer for texts that continue others, `constraint` one for replies that must fit a grammar.
Nothing here changes the tokenizer that a description was made of.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

SPACE = "▁"  # sentencepiece writes a space so
# The only normalizer that does not change a text, because the decoder reverses it.
SPACES_BY_MODEL = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}


def description(hf: Any) -> dict[str, Any]:
    """The description of `hf`, a tokenizer of transformers. Raises `ValueError` if it is not a fast one."""
    backend = getattr(hf, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"a tokenizer in Python ({type(hf).__name__}) has no description; provide a tokenizer.json")
    described: dict[str, Any] = json.loads(backend.to_str())
    return described | {"padding": None, "truncation": None}


def parts(component: Any) -> list[dict[str, Any]]:
    """The parts of a normalizer, a pre-tokenizer or a decoder that may be a sequence."""
    if component is None:
        return []
    if component["type"] != "Sequence":
        return [component]
    inner = next(component[key] for key in ("normalizers", "pretokenizers", "decoders") if key in component)
    return [part for each in inner for part in parts(each)]


def adds_prefix(described: dict[str, Any]) -> bool:
    """Whether the tokenizer puts a space before a text: then the ids of "ing" are those of " ing"."""
    return any(part["type"] == "Prepend" for part in parts(described["normalizer"])) or any(
        part.get("add_prefix_space") or part.get("prepend_scheme", "never") != "never"
        for part in parts(described["pre_tokenizer"])
    )


def without_prefix(described: dict[str, Any]) -> dict[str, Any]:
    """The description of a tokenizer that puts no space before a text."""
    normalizers = [part for part in parts(described["normalizer"]) if part["type"] != "Prepend"]
    changes = {"add_prefix_space": False, "prepend_scheme": "never"}
    splitters = [
        part | {key: value for key, value in changes.items() if key in part}
        for part in parts(described["pre_tokenizer"])
    ]
    return described | {
        "normalizer": _sequence("normalizers", normalizers),
        "pre_tokenizer": _sequence("pretokenizers", splitters),
    }


def ordinary(described: dict[str, Any], hidden: set[int], vocabulary: int) -> dict[str, Any]:
    """The description of a tokenizer with the tokens below `vocabulary`, whose texts are exactly those of its tokens.

    The tokens in `hidden` have names that no text contains, so that their own names are ordinary text. The tokenizer
    neither changes a text nor puts a space before it. Raises `ValueError` if the tokens do not determine the text.
    """
    added = [
        token | {"content": _impossible(token["id"]), "special": True} if token["id"] in hidden else token
        for token in described["added_tokens"]
        if token["id"] < vocabulary
    ]
    spaces = [part for part in parts(described["normalizer"]) if part == SPACES_BY_MODEL]
    changes = {
        "added_tokens": added,
        "normalizer": _sequence("normalizers", spaces),
        "post_processor": None,
        "decoder": _decoder(described),
        "model": _model(described["model"], {token["id"]: token["content"] for token in added}, hidden, vocabulary),
    }
    return without_prefix(described) | changes


def hidden_ids(described: dict[str, Any], ends: Iterable[int]) -> set[int]:
    """The ids that are never text: the `ends` of a text, and added tokens such as `<|im_end|>` or `<think>`.

    A run of spaces is text: some tokenizers have added tokens for the spaces in programs.
    """
    added = described["added_tokens"]
    return {*ends, *(token["id"] for token in added if token["special"] or token["content"].strip())}


def _sequence(key: str, found: list[dict[str, Any]]) -> dict[str, Any] | None:
    if not found:
        return None
    return found[0] if len(found) == 1 else {"type": "Sequence", key: found}


def space(described: dict[str, Any]) -> str:
    """The character that the tokenizer writes for a space, and so never for itself; "" if it has none."""
    return SPACE if SPACE in json.dumps(described["decoder"], ensure_ascii=False) else ""


def _decoder(described: dict[str, Any]) -> dict[str, Any]:
    """A decoder that joins the bytes of the tokens, in the form that llguidance recognizes."""
    kinds = [part["type"] for part in parts(described["decoder"])]
    if "ByteLevel" in kinds:
        return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    if space(described):
        replace = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
        return {"type": "Sequence", "decoders": [replace, {"type": "ByteFallback"}, {"type": "Fuse"}]}
    raise ValueError(
        f"the text of its tokens depends on their neighbours (decoder {' and '.join(kinds) or 'none'}); "
        "use a model whose tokenizer is a byte-level BPE or a sentencepiece model"
    )


def _model(model: dict[str, Any], added: dict[int, str], hidden: set[int], vocabulary: int) -> dict[str, Any]:
    """`model` with the tokens below `vocabulary`, of which those in `hidden` are renamed, and with those in `added`."""
    if isinstance(model["vocab"], list):  # Unigram: the index is the id
        pieces = model["vocab"][:vocabulary]
        least = min((score for _, score in pieces), default=0.0)
        size = max([len(pieces), *(identity + 1 for identity in added)])
        pieces += [[_impossible(place), least] for place in range(len(pieces), size)]
        names = {identity: _impossible(identity) for identity in hidden if identity < size} | added
        for identity, name in names.items():
            pieces[identity] = [name, least]
        return model | {"vocab": pieces}
    vocab = {
        _impossible(identity) if identity in hidden else piece: identity
        for piece, identity in model["vocab"].items()
        if identity < vocabulary
    }
    vocab |= {name: identity for identity, name in added.items()}
    changed = model | {"vocab": vocab}
    if "merges" in model:
        prefix = len(model.get("continuing_subword_prefix") or "")
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        changed["merges"] = [
            [left, right] for left, right in pairs if {left, right, left + right[prefix:]} <= vocab.keys()
        ]
    if model.get("unk_token") not in vocab:
        changed["unk_token"] = None
    return changed


def _impossible(identity: int) -> str:
    """A name for a token that no text contains: it consists of code points that are no characters."""
    return f"\U0010ffff\U0010fffe{identity}\U0010ffff"
