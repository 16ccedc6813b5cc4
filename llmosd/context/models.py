"""Models, as an agent calls them."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable, Mapping
from typing import Any, TypedDict, Unpack

import msgspec

from ipc.errors import InvalidCall
from ipc.syscalls import ChatMessage, EmbedTexts, Generate, Sampling, ScoreText
from llmosd.context.base import Caller
from llmosd.context.constraints import Decode, take_constraint

Messages = Iterable[Mapping[str, str] | ChatMessage]


class ChatOptions(TypedDict, total=False):
    """Keywords of `chat` and `generate`; what is left out takes the daemon's default.

    `temperature` 0 is greedy; `top_k` keeps the k likeliest tokens, `top_p` the likeliest that sum to p; the same
    `seed` draws the same tokens; text ends before any `stop` string; with `emit` tokens also go to whoever submitted
    the task, as they come.

    At most one of these binds the reply: `schema` (a JSON schema, or a type that msgspec can describe by one: the
    answer is a value of it), `choices` (texts: the answer is one of them), `regex`, `grammar` (Lark). With `samples`
    above 1, drawn with `seed`, `seed` + 1, ..., the answer is a list of `Completion`, or of values of the `schema`;
    with `logprobs` it is a list of `Completion` in any case.
    """

    model: str | None
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    seed: int | None
    stop: str | list[str] | None
    emit: bool
    schema: Any
    choices: list[str] | None
    regex: str | None
    grammar: str | None
    samples: int
    logprobs: bool


class ModelMethods(Caller):
    """Replies and continuations of text; how likely texts are, and what they are about."""

    __slots__ = ()

    def chat(self, messages: Messages, **options: Unpack[ChatOptions]) -> Coroutine[Any, Any, Any]:
        """The model's reply to a conversation of {"role", "content"} messages, through its chat template: a text.

        A typed value with `schema`, a list of `Completion` with `samples` or `logprobs`: see `ChatOptions`. Raises
        `InvalidConstraint` and `InvalidReply` besides the errors of `ipc.syscalls.Generate`.
        """
        return self._generate(_conversation("chat", messages), options)

    def generate(self, prompt: str, **options: Unpack[ChatOptions]) -> Coroutine[Any, Any, Any]:
        """The model's continuation of `prompt`, without any template; all else as in `chat`."""
        return self._generate(prompt, options)

    async def score(
        self, prompt: Messages | str, continuations: Iterable[str], model: str | None = None
    ) -> list[float]:
        """The natural logarithm of the probability of each of `continuations` after `prompt`."""
        asked = prompt if isinstance(prompt, str) else _conversation("score", prompt)
        call = ScoreText(asked, _texts("continuations", continuations), model)
        scores = await self._gate.call(self._process, call)
        return [score.logprob for score in scores]

    def embed(self, texts: Iterable[str], model: str | None = None) -> Coroutine[Any, Any, list[list[float]]]:
        """A vector of length 1 for each of `texts`: the more alike two texts are, the larger their scalar product."""
        return self._gate.call(self._process, EmbedTexts(_texts("texts", texts), model))

    def _generate(self, prompt: list[ChatMessage] | str, options: ChatOptions) -> Coroutine[Any, Any, Any]:
        given: dict[str, Any] = dict(options)
        model, emit, stop = given.pop("model", None), given.pop("emit", True), given.pop("stop", None)
        given_samples = given.pop("samples", 1)
        given["stop"] = (stop,) if isinstance(stop, str) else tuple(stop or ())
        given["constraint"], decode = take_constraint(given)
        unknown = given.keys() - set(Sampling.__struct_fields__)
        if unknown:
            raise TypeError(f"no such option: {', '.join(sorted(unknown))}")
        try:
            sampling = msgspec.convert(given, Sampling)
            samples = msgspec.convert(given_samples, int)
        except msgspec.ValidationError as error:
            raise InvalidCall(f"generation options: {error}") from None
        call = Generate(prompt, model, sampling, emit, samples)
        if decode is str or sampling.logprobs:
            return self._gate.call(self._process, call)
        return self._decoded(call, decode)

    async def _decoded(self, call: Generate, decode: Decode) -> Any:
        answer = await self._gate.call(self._process, call)
        return decode(answer) if call.samples == 1 else [decode(completion.text) for completion in answer]


def _conversation(method: str, messages: Messages) -> list[ChatMessage]:
    try:
        return msgspec.convert(list(messages), list[ChatMessage], from_attributes=True)
    except msgspec.ValidationError as error:
        raise InvalidCall(f"{method} takes a list of {{role, content}} messages: {error}") from None


def _texts(name: str, texts: Iterable[str]) -> list[str]:
    if isinstance(texts, str):
        raise InvalidCall(f"{name} is a list of texts, not one text")
    try:
        return msgspec.convert(list(texts), list[str])
    except msgspec.ValidationError as error:
        raise InvalidCall(f"{name} is a list of texts: {error}") from None
