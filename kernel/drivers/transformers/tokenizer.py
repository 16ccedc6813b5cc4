"""The model's tokenizer, as the driver uses it: prompts to ids, ids to text, and the ids that end a text.

`model_builder` makes it. The text of a prompt may name control tokens and gets them; the contents of messages
(`chat_template`), documents and continuations only get plain text. It never changes a prompt's text.
"""

from __future__ import annotations

from typing import Any

from ipc.errors import InvalidPrompt
from ipc.syscalls import ChatMessage
from kernel.drivers.transformers.chat_template import ChatTemplate
from kernel.drivers.transformers.constraint import GrammarCompiler
from kernel.drivers.transformers.continuation import Continuations
from kernel.drivers.transformers.control_tokens import ControlTokens
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
        self._limit = TextLimit(hf, context)
        self._controls = ControlTokens(hf, name)
        self._chat = ChatTemplate(hf, self._controls, self._limit, name)
        self._continuations = Continuations(hf)
        self.ends = ends
        self.skipped = names_of_special(hf)
        self.sampled = size_with_text(hf, vocabulary)
        self.grammars = GrammarCompiler(hf, ends, vocabulary)

    def encode(self, prompt: list[ChatMessage] | str) -> list[int]:
        """The ids of `prompt`; the reply begins after the last one. Raises `InvalidPrompt`."""
        if not prompt:
            raise InvalidPrompt("the prompt is empty; pass text or at least one message")
        if isinstance(prompt, str):
            self._limit.check(prompt)
        ids: list[int] = self._hf(prompt)["input_ids"] if isinstance(prompt, str) else self._chat.encode(prompt)
        if not ids:
            raise InvalidPrompt("the prompt has no tokens; pass some text")
        check_ids(ids, self._hf, self._size, self._name)
        return ids

    def encode_document(self, text: str) -> list[int]:
        """The ids of `text`, a document: where it names a control token, that is plain text. Raises `InvalidPrompt`."""
        if not text:
            raise InvalidPrompt("the text is empty; pass some text")
        self._limit.check(text)
        ids: list[int]
        if not self._controls.may_be_in(text):
            ids = self._hf(text)["input_ids"]
        else:
            ids, matches = self._controls.encode(text, whole=True)
            ids = self._controls.encode_plain(text, whole=True) if matches else ids
        if not ids:
            raise InvalidPrompt("the text has no tokens; pass some text")
        check_ids(ids, self._hf, self._size, self._name)
        return ids

    def encode_more(self, text: str) -> list[int]:
        """The ids of `text`, which continues another text: it gets no special tokens, and no space before it.

        Where it names a control token, that is plain text.
        """
        self._limit.check(text)
        if self._controls.may_be_in(text) and self._controls.encode(text)[1]:
            ids = self._controls.encode_plain(text, backend=self._continuations.backend)
        else:
            ids = self._continuations.encode(text)
        check_ids(ids, self._hf, self._size, self._name)
        return ids

    def decode(self, ids: list[int]) -> str:
        """The text of `ids`. Special tokens are left out."""
        text: str = self._hf.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
