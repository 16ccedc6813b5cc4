"""A model's chat template: turns to ids. Only the template makes control tokens, the contents of the turns make none.

`tokenizer` uses it. The template is rendered a second time with the contents in disguise (`hidden_text`), if they might
name control tokens. That shows which control tokens are the template's own; `control_tokens` writes the others as plain
text. Other turns become exactly the ids that transformers makes of them.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import cached_property
from typing import Any

from ipc.errors import InvalidPrompt
from ipc.syscalls import ChatMessage
from kernel.drivers.transformers.control_tokens import ControlTokens, Match
from kernel.drivers.transformers.hidden_text import OF_A_CONTENT, RUN_OF_A_CONTENT, Disguise, joined
from kernel.drivers.transformers.text_limit import TextLimit

# A template may make a control token of one of these or of a role that it names, as in '<|' + role + '|>'.
ROLES = frozenset(("system", "user", "assistant", "tool", "developer", "function"))


class ChatTemplate:
    """The chat template of `hf`, a tokenizer of transformers; `name` is the model's name for error messages."""

    def __init__(self, hf: Any, controls: ControlTokens, limit: TextLimit, name: str) -> None:
        self._hf = hf
        self._controls = controls
        self._limit = limit
        self._name = name

    def encode(self, messages: list[ChatMessage]) -> list[int]:
        """The ids of a prompt for the reply to `messages`. Raises `InvalidPrompt`, and `ContextOverflow` as `limit`."""
        if not self._hf.chat_template:
            raise InvalidPrompt(f"model {self._name} has no chat template; pass the prompt as plain text")
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text: str = self._hf.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        except Exception as error:
            raise InvalidPrompt(f"the chat template of {self._name} refuses these messages: {error}") from error
        self._limit.check(text)
        contents = [content for turn in turns for content in self._contents(turn)]
        if not any(map(self._controls.may_be_in, contents)):
            ids: list[int] = self._hf(text, add_special_tokens=False)["input_ids"]
            return ids
        ids, matches = self._controls.encode(text)
        if not matches:
            return ids
        disguise = Disguise(self._source)
        try:
            hidden = self._render_hidden(disguise, turns)
        except Exception as error:
            if names := self._named_in(contents) or self._begun_in(contents):
                raise self._controls.refusal(names) from error
            return ids
        real = disguise.real(hidden)
        if real == text:
            made = any(OF_A_CONTENT.search(hidden, match.start, match.end) for match in matches)
            return self._controls.encode_plain(real, self._own(hidden)) if made else ids
        # The template looks at contents in a way that `HiddenText` does not know. If they name control tokens, or may
        # have made one together with the template, it has to do without looking at them.
        own = self._own(hidden)
        other = [match.id for match in matches] != [match.id for match in own]
        made = bool(self._named_in(contents) or (other and self._begun_in(contents)))
        return self._controls.encode_plain(real, own) if made else ids

    def _own(self, hidden: str) -> list[Match]:
        """The control tokens that the template itself makes in `hidden`, a text with disguised contents.

        Disguised characters take long to tokenize, so each run of them is cut to one.
        """
        pieces, starts, shifts, at, length = [], [0], [0], 0, 0
        for run in RUN_OF_A_CONTENT.finditer(hidden):
            pieces.append(hidden[at : run.start() + 1])
            length += len(pieces[-1])
            at = run.end()
            starts.append(length)
            shifts.append(at - length)
        matches = self._controls.encode("".join([*pieces, hidden[at:]]))[1]
        whole = []
        for identity, start, end in matches:
            shift = shifts[bisect_right(starts, start) - 1]
            whole.append(Match(identity, start + shift, end + shift))
        return whole

    def _named_in(self, contents: list[str]) -> list[str]:
        found = ((content, self._controls.encode(content)[1]) for content in contents)
        return [content[match.start : match.end] for content, matches in found for match in matches]

    def _begun_in(self, contents: list[str]) -> list[str]:
        return [name for content in contents for name in self._controls.of_parts(content)]

    def _contents(self, turn: dict[str, str]) -> list[str]:
        return [turn["content"]] if self._is_role(turn["role"]) else [turn["content"], turn["role"]]

    def _is_role(self, role: str) -> bool:
        return role in ROLES or (role.isidentifier() and (f"'{role}'" in self._source or f'"{role}"' in self._source))

    def _render_hidden(self, disguise: Disguise, turns: list[dict[str, str]]) -> str:
        hidden = []
        for turn in turns:
            role = turn["role"] if self._is_role(turn["role"]) else disguise.hide(turn["role"])
            hidden.append({"role": role, "content": disguise.hide(turn["content"])})
        text: str = self._template.render(
            messages=hidden, tools=None, documents=None, add_generation_prompt=True, **self._hf.special_tokens_map
        )
        return text

    @cached_property
    def _source(self) -> str:
        source: str = self._hf.get_chat_template()
        return source

    @cached_property
    def _template(self) -> Any:
        # transformers renders only plain strings, so this uses its environment. Macros and blocks join their parts with
        # `concat`: the copy of the environment keeps them disguised.
        from transformers.utils.chat_template_utils import _compile_jinja_template

        environment = _compile_jinja_template(self._source).environment.overlay()
        environment.concat = joined
        return environment.from_string(self._source)
