"""Which ids a tokenizer and its model have in common: one of them may have more than the other.

`Tokenizer` uses it. Nothing here encodes or decodes a text.
"""

from __future__ import annotations

from typing import Any

from ipc.errors import InvalidPrompt

NAMED = 3  # an error names so many tokens


def names_of_special(hf: Any) -> dict[int, str]:
    """The names of the special tokens of `hf`, a tokenizer of transformers, by id: decoding leaves them out."""
    added = getattr(hf, "added_tokens_decoder", None) or {}
    return {identity: token.content for identity, token in added.items() if token.special}


def size_with_text(hf: Any, vocabulary: int) -> int | None:
    """How many ids have a text, if the model has `vocabulary` logits for a token and more than the tokenizer has ids.

    None: all logits belong to tokens. Models are padded to round sizes; nothing has trained the last logits.
    """
    if not hasattr(hf, "get_vocab") or len(hf) >= vocabulary:
        return None
    size = 1 + max(hf.get_vocab().values(), default=-1)
    return size if size < vocabulary else None


def check_ids(ids: list[int], hf: Any, vocabulary: int, name: str) -> None:
    """Raise `InvalidPrompt` if the model called `name` has no token for one of `ids`."""
    if not ids or max(ids) < vocabulary:
        return
    unknown = sorted({identity for identity in ids if identity >= vocabulary})
    shown = ", ".join(f"{identity} ({hf.convert_ids_to_tokens(identity)!r})" for identity in unknown[:NAMED])
    more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
    raise InvalidPrompt(
        f"the tokenizer of {name} makes tokens of this text that the model lacks: {shown}{more}. The model has the ids "
        f"0 to {vocabulary - 1}; remove these tokens from the text, or give the model the tokenizer that fits it"
    )
