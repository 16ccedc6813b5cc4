"""Models: the calls of an agent to generate, score and embed text."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any, Literal, TypedDict, Unpack, overload

import msgspec

from ipc.codec import reason_of
from ipc.errors import InvalidCall, InvalidReply, LlmosError
from ipc.syscalls import ChatMessage, Completion, EmbedTexts, Generate, Sampling, ScoreText, WriteLog
from llmosd.context.base import Caller, list_of
from llmosd.context.constraints import Decode, take_constraint

Messages = Iterable[Mapping[str, str] | ChatMessage]


class AnswerOptions(msgspec.Struct):
    """The options that are not part of `Sampling`: the model, and the form of the answer."""

    model: str | None = None
    emit: bool = True
    samples: int = 1
    full: bool = False


ANSWER_OPTIONS = frozenset(AnswerOptions.__struct_fields__)


class TextOptions(TypedDict, total=False):
    """The keywords of `chat` with which the answer is a text. `ChatOptions` describes them."""

    model: str | None
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    seed: int | None
    stop: str | list[str] | None
    emit: bool
    choices: list[str] | None
    regex: str | None
    grammar: str | None


class ReplyOptions(TextOptions, total=False):
    """The keywords of `chat` with which the answer is one reply. `ChatOptions` describes them."""

    schema: Any
    logprobs: bool


class ChatOptions(ReplyOptions, total=False):
    """Keywords of `chat` and `generate`. A keyword that is left out or None takes the default of the model.

    `model`: a configured name, or a path. `max_tokens` bounds the reply. `temperature` 0 is greedy. `top_k` keeps the k
    likeliest tokens, `top_p` the likeliest tokens whose probabilities sum to p. The same `seed` draws the same tokens.
    The text ends before the first `stop` string. With `emit` (the default), the client that submitted the task gets
    each token when it is made.

    At most one of these options may constrain the reply: `schema` (a JSON schema, or a type that msgspec can describe;
    the answer is a value of that type), `choices` (texts; the answer is one of them), `regex`, or `grammar` (Lark).
    `samples`: the number of replies; they are drawn with `seed`, `seed` + 1 and so on. With more than one, the answer
    is a list of `Completion`, or of values of the `schema`. With `logprobs`, it is always a list of `Completion`. A
    reply that was cut loses only itself: it is missing among the values, with a line in the log, and a `Completion` has
    the `reason` "length" or "context" and no `value`. Only if no reply is complete, the call raises `InvalidReply`.

    With `full`, the answer is a `Completion`, which also states why the reply ended and how long it is; with more than
    one of `samples`, a list of them. If a reply is cut although the call sets no `max_tokens`, the user of the task is
    warned, but not with `full`: the agent knows.
    """

    samples: int
    full: bool


class ModelMethods(Caller):
    """Replies and continuations of text; log probabilities and embeddings of texts."""

    __slots__ = ()

    @overload
    def chat(
        self, messages: Messages, *, full: Literal[False] = False, **options: Unpack[TextOptions]
    ) -> Coroutine[Any, Any, str]: ...

    @overload
    def chat(
        self, messages: Messages, *, full: Literal[True], **options: Unpack[ReplyOptions]
    ) -> Coroutine[Any, Any, Completion]: ...

    @overload
    def chat(self, messages: Messages, **options: Unpack[ChatOptions]) -> Coroutine[Any, Any, Any]: ...

    def chat(self, messages: Messages, **options: Unpack[ChatOptions]) -> Coroutine[Any, Any, Any]:
        """The model's reply to a conversation: a text, by the model's chat template.

        Only the template makes control tokens; in contents their names are plain text.
        `messages`: mappings with "role" and "content", or `ChatMessage`. With `schema` the answer is a typed value,
        with `full` a `Completion`, and with `samples` or `logprobs` a list: see `ChatOptions`. Raises the errors of
        `ipc.syscalls.Generate`, and `InvalidReply` also if the reply does not fit the type of `schema`.
        """
        return self._generate(_conversation("chat", messages), options)

    @overload
    def generate(
        self, prompt: str, *, full: Literal[False] = False, **options: Unpack[TextOptions]
    ) -> Coroutine[Any, Any, str]: ...

    @overload
    def generate(
        self, prompt: str, *, full: Literal[True], **options: Unpack[ReplyOptions]
    ) -> Coroutine[Any, Any, Completion]: ...

    @overload
    def generate(self, prompt: str, **options: Unpack[ChatOptions]) -> Coroutine[Any, Any, Any]: ...

    def generate(self, prompt: str, **options: Unpack[ChatOptions]) -> Coroutine[Any, Any, Any]:
        """The model's continuation of `prompt`, without a chat template. Options and errors are those of `chat`.

        A name of a control token in `prompt` becomes that token: put text of others into messages for `chat`.
        """
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
        constraint, decode = take_constraint(given)
        shape = {name: given.pop(name) for name in ANSWER_OPTIONS & given.keys()}
        stop = given.pop("stop", None)
        stops = (stop,) if isinstance(stop, str) else () if stop is None else tuple(list_of(stop, "stop"))
        if "" in stops:
            raise InvalidCall("generation options: an empty stop string would end every reply at once; remove it")
        given |= {"constraint": constraint, "stop": stops}
        unknown = given.keys() - set(Sampling.__struct_fields__)
        if unknown:
            raise TypeError(f"unknown options: {', '.join(sorted(unknown))}")
        try:
            sampling = msgspec.convert(given, Sampling)
            answer = msgspec.convert({name: value for name, value in shape.items() if value is not None}, AnswerOptions)
        except (msgspec.ValidationError, UnicodeError, RecursionError) as error:
            raise InvalidCall(f"generation options: {reason_of(error)}") from None
        call = Generate(prompt, answer.model, sampling, answer.emit, answer.samples, answer.full)
        if decode is str and not answer.full:
            return self._gate.call(self._process, call)
        return self._decoded(call, decode)

    async def _decoded(self, call: Generate, decode: Decode) -> Any:
        answer: str | list[Completion] = await self._gate.call(self._process, call)
        if isinstance(answer, str):
            return decode(answer)
        values, errors = _decode_all(answer, decode)
        if call.full or call.sampling.logprobs:
            if decode is not str:
                pairs = enumerate(answer)
                answer = [msgspec.structs.replace(reply, value=values.get(number)) for number, reply in pairs]
            return answer[0] if call.full and call.samples == 1 else answer
        if errors:
            text = f"{len(errors)} of {len(answer)} replies are missing among the values; {errors[0].message}"
            self._gate.call_now(self._process, WriteLog("warning", text, {}))
        return list(values.values())


def _decode_all(replies: Sequence[Completion], decode: Decode) -> tuple[dict[int, Any], list[InvalidReply]]:
    """The values of `replies` by position, and the errors of those without. Raises `InvalidReply` if none has one."""
    values: dict[int, Any] = {}
    errors = []
    for number, reply in enumerate(replies):
        try:
            values[number] = decode(reply.text)
        except InvalidReply as error:
            errors.append(error)
    if errors and not values:
        raise errors[0]
    return values, errors


def _conversation(method: str, messages: Messages) -> list[ChatMessage]:
    try:
        return msgspec.convert(list_of(messages, method), list[ChatMessage], from_attributes=True)
    except LlmosError:
        raise
    except Exception as error:  # the conversion reads attributes and items, which may raise anything
        raise InvalidCall(f"{method} takes a list of {{role, content}} messages: {reason_of(error)}") from None


def _texts(name: str, texts: Iterable[str]) -> list[str]:
    if isinstance(texts, str):
        raise InvalidCall(f"{name} must be a list of texts, not a single text")
    try:
        return msgspec.convert(list_of(texts, name), list[str])
    except (msgspec.ValidationError, RecursionError) as error:
        raise InvalidCall(f"{name} must be a list of texts: {reason_of(error)}") from None
