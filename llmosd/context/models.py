"""Models: the calls of an agent to generate, score and embed text."""

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
    """Keywords of `chat` and `generate`. A keyword that is left out or None takes the default of the model.

    `model`: a configured name, or a path. `max_tokens` bounds the reply. `temperature` 0 is greedy. `top_k` keeps the k
    likeliest tokens, `top_p` the likeliest tokens whose probabilities sum to p. The same `seed` draws the same tokens.
    The text ends before the first `stop` string. With `emit` (the default), the client that submitted the task gets
    each token when it is made.

    At most one of these options may constrain the reply: `schema` (a JSON schema, or a type that msgspec can describe;
    the answer is a value of that type), `choices` (texts; the answer is one of them), `regex`, or `grammar` (Lark).
    `samples`: the number of replies; they are drawn with `seed`, `seed` + 1 and so on. With more than one, the answer
    is a list of `Completion`, or of values of the `schema`. With `logprobs`, it is always a list of `Completion`.
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
    """Replies and continuations of text; log probabilities and embeddings of texts."""

    __slots__ = ()

    def chat(self, messages: Messages, **options: Unpack[ChatOptions]) -> Coroutine[Any, Any, Any]:
        """The model's reply to a conversation: a text, by the model's chat template.

        `messages`: mappings with "role" and "content", or `ChatMessage`. With `schema` the answer is a typed value;
        with `samples` or `logprobs` it is a list: see `ChatOptions`. Raises the errors of `ipc.syscalls.Generate`, and
        `InvalidReply` also if the reply does not fit the type of `schema`.
        """
        return self._generate(_conversation("chat", messages), options)

    def generate(self, prompt: str, **options: Unpack[ChatOptions]) -> Coroutine[Any, Any, Any]:
        """The model's continuation of `prompt`, without a chat template. Options and errors are those of `chat`."""
        return self._generate(prompt, options)

    async def score(
        self, prompt: Messages | str, continuations: Iterable[str], model: str | None = None
    ) -> list[float]:
        """The natural logarithm of the probability of each continuation after `prompt`. At most 4,096 continuations."""
        asked = prompt if isinstance(prompt, str) else _conversation("score", prompt)
        call = ScoreText(asked, _texts("continuations", continuations), model)
        scores = await self._gate.call(self._process, call)
        return [score.logprob for score in scores]

    def embed(self, texts: Iterable[str], model: str | None = None) -> Coroutine[Any, Any, list[list[float]]]:
        """A vector of length 1 for each text. The more similar two texts are, the larger is their scalar product."""
        return self._gate.call(self._process, EmbedTexts(_texts("texts", texts), model))

    def _generate(self, prompt: list[ChatMessage] | str, options: ChatOptions) -> Coroutine[Any, Any, Any]:
        given: dict[str, Any] = dict(options)
        model, emit, stop = given.pop("model", None), given.pop("emit", True), given.pop("stop", None)
        given_samples = given.pop("samples", 1)
        given["stop"] = (stop,) if isinstance(stop, str) else tuple(stop or ())
        given["constraint"], decode = take_constraint(given)
        unknown = given.keys() - set(Sampling.__struct_fields__)
        if unknown:
            raise TypeError(f"unknown options: {', '.join(sorted(unknown))}")
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
        raise InvalidCall(f"{name} must be a list of texts, not a single text")
    try:
        return msgspec.convert(list(texts), list[str])
    except msgspec.ValidationError as error:
        raise InvalidCall(f"{name} must be a list of texts: {error}") from None
