"""The model's tokenizer, as the driver uses it: prompts to ids, ids to text, and the ids that end a text.

`model_builder` makes it. Any error of a chat template becomes `InvalidPrompt`. It never changes a prompt's text.
"""

from __future__ import annotations

from typing import Any

from ipc.errors import InvalidPrompt
from ipc.syscalls import ChatMessage
from kernel.drivers.transformers.constraint import GrammarCompiler
from kernel.drivers.transformers.continuation import Continuations
from kernel.drivers.transformers.text_limit import TextLimit
from kernel.drivers.transformers.token_ids import check_ids, names_of_special, size_with_text


class Tokenizer:
    """`hf`, a tokenizer of transformers, with a compiler of constraints for its tokens.

    `ends` are the ids that end a text, `vocabulary` is the number of logits that the model has for a token, `name` is
    the model's name for error messages, and `context` is in tokens (None: any). Each method that makes ids raises
    `ContextOverflow` for a text that is certainly longer.
    """

    def __init__(self, hf: Any, ends: frozenset[int], name: str, vocabulary: int, context: int | None = None) -> None:
        self._hf = hf
        self._name = name
        self._size = vocabulary
        self._continuations = Continuations(hf)
        self.ends = ends
        self.skipped = names_of_special(hf)
        self.sampled = size_with_text(hf, vocabulary)
        self._limit = TextLimit(hf, context)
        self.grammars = GrammarCompiler(hf, ends, vocabulary)

    def encode(self, prompt: list[ChatMessage] | str) -> list[int]:
        """The ids of `prompt`; the reply begins after the last one. Raises `InvalidPrompt`."""
        if not prompt:
            raise InvalidPrompt("the prompt is empty; pass text or at least one message")
        ids = self._encode(prompt, whole=True) if isinstance(prompt, str) else self._encode_chat(prompt)
        if not ids:
            raise InvalidPrompt("the prompt has no tokens; pass some text")
        check_ids(ids, self._hf, self._size, self._name)
        return ids

    def encode_more(self, text: str) -> list[int]:
        """The ids of `text`, which continues another text: it gets no special tokens, and no space before it."""
        self._limit.check(text)
        ids = self._continuations.encode(text)
        check_ids(ids, self._hf, self._size, self._name)
        return ids

    def decode(self, ids: list[int]) -> str:
        """The text of `ids`. Special tokens are left out."""
        text: str = self._hf.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _encode_chat(self, messages: list[ChatMessage]) -> list[int]:
        if not self._hf.chat_template:
            raise InvalidPrompt(f"model {self._name} has no chat template; pass the prompt as plain text")
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text: str = self._hf.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        except Exception as error:
            raise InvalidPrompt(f"the chat template of {self._name} refuses these messages: {error}") from error
        return self._encode(text, whole=False)

    def _encode(self, text: str, *, whole: bool) -> list[int]:
        """The ids of `text`; a `whole` text gets the tokens that begin or end one."""
        self._limit.check(text)
        ids: list[int] = (self._hf(text) if whole else self._hf(text, add_special_tokens=False))["input_ids"]
        return ids
