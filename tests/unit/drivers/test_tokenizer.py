"""The tokenizer of a model as the driver uses it.

A prompt that it cannot encode is refused with a reason, also if a chat template raises an error.
"""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch", reason="constraints are masks in torch (extra `local`)")

from ipc.errors import InvalidPrompt
from ipc.syscalls import ChatMessage
from kernel.drivers.transformers.tokenizer import Tokenizer


class Template:
    """The part of a transformers tokenizer that `Tokenizer` uses."""

    def __init__(self, chat_template: str | None) -> None:
        self.chat_template = chat_template

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [1] * len(text.strip())}

    def apply_chat_template(self, turns: Any, **options: Any) -> list[int]:
        raise ValueError("roles must alternate")


@pytest.mark.parametrize(
    ("template", "prompt", "words"),
    [
        (None, "", "empty"),
        (None, [], "empty"),
        (None, " ", "no tokens"),
        (None, [ChatMessage("user", "hi")], "model tiny has no chat template"),
        ("x", [ChatMessage("user", "hi")], "roles must alternate"),
    ],
)
def test_prompts_that_the_model_cannot_take_are_refused(template: str | None, prompt: Any, words: str) -> None:
    with pytest.raises(InvalidPrompt, match=words):
        Tokenizer(Template(template), frozenset(), "tiny", 97).encode(prompt)
