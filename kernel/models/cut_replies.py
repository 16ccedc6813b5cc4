"""Replies that were cut: says in words why, to the user of the task or in the error for an incomplete value.

Used by `calls.py` and `constraints.py`. A reply is cut by the `max_tokens` of its call, by the default limit of the
model, or by the end of the model's context. It never decides when a reply ends: the driver does.
"""

from __future__ import annotations

from collections.abc import Sequence

from ipc.syscalls import Completion


def is_cut(completion: Completion) -> bool:
    """Whether the reply ended before its model ended it."""
    return completion.reason in ("length", "context")


def cause(completion: Completion, max_tokens: int | None) -> str:
    """Why a reply to a call with this `max_tokens` was cut, and what to do."""
    after = f"after {completion.tokens} tokens"
    if completion.reason == "context":
        filled = completion.prompt_tokens + completion.tokens
        return f"{after}, because with its prompt it fills the model's context of {filled} tokens; shorten the prompt"
    if max_tokens is None:
        return f"{after}, the default limit; set max_tokens for another limit"
    return f"{after}, its max_tokens; raise max_tokens"


def warning(completions: Sequence[Completion], max_tokens: int | None) -> str:
    """The warning for a call with these replies; empty if none was cut by a limit that the call does not set."""
    cut = [] if max_tokens is not None else [completion for completion in completions if is_cut(completion)]
    if not cut:
        return ""
    which = "the reply was" if len(completions) == 1 else f"{len(cut)} of {len(completions)} replies were"
    return f"{which} cut {cause(cut[0], max_tokens)}"
