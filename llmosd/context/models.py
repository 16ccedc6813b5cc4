"""Models, as an agent calls them."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable, Mapping
from typing import Any, TypedDict, Unpack

import msgspec

from ipc.errors import InvalidCall
from ipc.syscalls import ChatMessage, Generate, Sampling
from llmosd.context.base import Caller

Messages = Iterable[Mapping[str, str] | ChatMessage]


class ChatOptions(TypedDict, total=False):
    """Keywords of `chat` and `generate`; what is left out takes the daemon's default.

    `temperature` 0 is greedy; `top_k` keeps the k likeliest tokens, `top_p` the likeliest that sum to p; the same
    `seed` draws the same tokens; text ends before any `stop` string; with `emit` tokens also go to whoever submitted
    the task, as they come.
    """

    model: str | None
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    seed: int | None
    stop: str | list[str] | None
    emit: bool


class ModelCalls(Caller):
    """Replies and continuations of text."""

    __slots__ = ()

    def chat(self, messages: Messages, **options: Unpack[ChatOptions]) -> Coroutine[Any, Any, str]:
        """The model's reply to a conversation of {"role", "content"} messages, through its chat template."""
        try:
            prompt = msgspec.convert(list(messages), list[ChatMessage], from_attributes=True)
        except msgspec.ValidationError as error:
            raise InvalidCall(f"chat takes a list of {{role, content}} messages: {error}") from None
        return self._generate(prompt, options)

    def generate(self, prompt: str, **options: Unpack[ChatOptions]) -> Coroutine[Any, Any, str]:
        """The model's continuation of `prompt`, without any template."""
        return self._generate(prompt, options)

    def _generate(self, prompt: list[ChatMessage] | str, options: ChatOptions) -> Coroutine[Any, Any, str]:
        given: dict[str, Any] = dict(options)
        model, emit, stop = given.pop("model", None), given.pop("emit", True), given.pop("stop", None)
        given["stop"] = (stop,) if isinstance(stop, str) else tuple(stop or ())
        unknown = given.keys() - set(Sampling.__struct_fields__)
        if unknown:
            raise TypeError(f"no such option: {', '.join(sorted(unknown))}")
        try:
            sampling = msgspec.convert(given, Sampling)
        except msgspec.ValidationError as error:
            raise InvalidCall(f"generation options: {error}") from None
        return self._gate.call(self._process, Generate(prompt, model, sampling, emit))
