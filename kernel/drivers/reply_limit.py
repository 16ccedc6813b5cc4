"""The most tokens that a generation may make: the bound of its call, else the default of the model, within the context.

Both drivers ask this when a generation begins. It never counts tokens.
"""

from __future__ import annotations

from typing import NamedTuple

from ipc.errors import ContextOverflow


class ReplyLimit(NamedTuple):
    """`reason` is that of `Done` for a reply which reaches `tokens`."""

    tokens: int
    reason: str


def reply_limit(max_tokens: int | None, default: int, prompt: int, context: int) -> ReplyLimit:
    """The limit of a reply to `prompt` tokens in a context of `context` tokens, if its call sets `max_tokens`.

    Raises `ContextOverflow` if the prompt and the longest reply exceed the context. A call without `max_tokens` gets
    `default`, or what fits into the context.
    """
    room = context - prompt
    wanted = max_tokens or max(1, min(room, default))
    if wanted > room:
        raise ContextOverflow(
            f"a prompt of {prompt} tokens and a reply of up to {wanted} exceed the model's context of {context} "
            "tokens; shorten the prompt or lower max_tokens",
            prompt_tokens=prompt,
            max_tokens=wanted,
            context=context,
        )
    return ReplyLimit(wanted, "length" if max_tokens or default <= room else "context")
