"""Random calls of tiny models by their number, the tokenizer that they share, and the answer of each call alone.

Used by the trials of the engine. A number always makes the same call. Its answer alone is computed once.
"""

from __future__ import annotations

import queue
import random
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import cache
from typing import Any, NamedTuple

from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ipc.syscalls import Constraint, Sampling
from kernel.drivers.protocol import (
    Admit,
    Done,
    Embedded,
    EmbedQuery,
    Scored,
    ScoreQuery,
    Stop,
)
from kernel.drivers.transformers.tokenize_ahead import tokenized
from kernel.drivers.transformers.tokenizer import Tokenizer
from tests.support.tiny import Kernel, Ready, ready

MERGES = [("t", "h"), ("th", "e"), ("i", "n"), ("Ġ", "a"), ("e", "r"), ('"', ":"), ("{", '"'), ("1", "2"), ("a", "b")]
CONTEXT = 448  # longer than the lengths that are unsafe on many machines, a block being 512
POOL = 40  # different calls of a model
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("Llama", "float32", {}),
    "llama-half": ("Llama", "float16", {}),
    "qwen3": ("Qwen3", "float32", {"num_attention_heads": 4, "num_key_value_heads": 1}),
    "mistral": ("Mistral", "float16", {"sliding_window": 70, "num_key_value_heads": 4}),
    "modules": ("Llama", "float32", {"mlp_bias": True, "num_attention_heads": 6, "hidden_size": 96}),
}


class Inline(Executor):
    """An executor that does its work immediately, on the caller's thread."""

    _threads: tuple[()] = ()

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*arguments, **named))
        except Exception as error:
            future.set_exception(error)
        return future


@cache
def codec() -> Tokenizer:
    """A small byte-level tokenizer of the real kind."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {
        letter: place for place, letter in enumerate([*letters, *("".join(pair) for pair in MERGES), "<end>"])
    }
    core = Core(models.BPE(vocab=vocabulary, merges=MERGES))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    hf = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")
    found = Tokenizer(hf, frozenset({vocabulary["<end>"]}), "tiny", len(vocabulary))
    found.grammars._pool = Inline()  # type: ignore[assignment]
    return found


@cache
def model_of(name: str) -> Ready:
    kind, kernel, changes = MODELS[name]
    return ready(kind, kernel, vocab_size=len(codec()._hf), max_position_embeddings=CONTEXT, **changes)


class Said(NamedTuple):
    """The answer of a generation."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    reason: str


def prompt_of(number: int) -> str:
    """The prompt of call `number`. Several share a beginning of some length; each fifth prompt is long."""
    rng = random.Random(number)
    words = ["the", "in", "ab", "12", "er", " a", "é", "x", "\n", '{"', "zz"]
    system = random.Random(number % 4)
    length = rng.choice([0, 0, 17, 60, 180]) if number % 5 else 330
    beginning = "".join(system.choice(words) for _ in range(200))[:length]
    return beginning + "".join(rng.choice(words) for _ in range(rng.choice([1, 2, 5, 20, 40])))


CONSTRAINTS = [
    Constraint("regex", "[ab]{3,20}(the|in)*[0-9]{2}"),
    Constraint("choices", '["yes", "no, not at all", "the other one", "é"]'),
    Constraint("schema", '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}'),
]


def sampling_of(number: int) -> Sampling:
    rng = random.Random(number + 1_000_000)
    kinds: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 1},
        {"temperature": 1.5, "top_p": 0.9},
        {"temperature": 0.8, "top_k": 20},
    ]
    changes = rng.choice(kinds)
    if rng.random() < 0.25:
        changes = changes | {"constraint": rng.choice(CONSTRAINTS)}
    if rng.random() < 0.2:
        changes = changes | {"stop": ("th", "a", "12")}
    return Sampling(
        max_tokens=rng.choice([1, 3, 8, 20, 40]) if number % 5 else 40, seed=number, logprobs=True, **changes
    )


def other_call(number: int) -> ScoreQuery | EmbedQuery:
    """A query: a score or an embedding request."""
    rng = random.Random(number)
    if number % 2:
        return ScoreQuery(number, prompt_of(number), [prompt_of(rng.randrange(POOL))[:30] or "x" for _ in range(3)])
    return EmbedQuery(number, [prompt_of(rng.randrange(POOL)) for _ in range(2)])


@cache
def alone(model: str, number: int) -> Said:
    """The answer of call `number` when it runs alone, in a driver of its own."""
    kernel = Scripted(model_of(model), random.Random(0))
    kernel.run(Admit(number, prompt_of(number), sampling_of(number), 1000))
    (done,) = kernel.of(Done)
    return Said(tuple(kernel.ids[number]), tuple(kernel.logprobs[number]), kernel.text[number], done.reason)


@cache
def answer_alone(model: str, number: int) -> Scored | Embedded:
    kernel = Scripted(model_of(model), random.Random(0)).run(other_call(number))
    (answer,) = kernel.of(Scored) + kernel.of(Embedded)
    assert isinstance(answer, Scored | Embedded)
    return answer


class Scripted(Kernel):
    """Receives each message of a worker thread a random number of steps later."""

    def __init__(self, model: Ready, rng: random.Random, **options: Any) -> None:
        self._late: list[tuple[int, Any]] = []  # the step from which on it may arrive, and the message
        self._rng = rng
        super().__init__(model, codec(), **options)
        self.calls.swap_io.thread = Inline()  # type: ignore[assignment]

    def put(self, message: Any) -> None:
        self._late.append((len(self.batches) + self._rng.choice([0, 0, 1, 3]), message))

    def get(self, block: bool, timeout: float | None = None) -> Any:
        if self.said:
            return tokenized(self.codec, self.said.popleft())
        for place, (step, message) in enumerate(self._late):
            if block or step <= len(self.batches):
                del self._late[place]
                return message
        if block:
            return Stop()
        raise queue.Empty
