"""Scores of continuations and vectors of texts: equal to the model's own numbers, and the same in any batch."""

from __future__ import annotations

import math
import random
from functools import cache
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the driver runs torch models (extra `local`)")

from kernel.drivers.protocol import Admitted, Cancel, Done, Embedded, EmbedQuery, Scored, ScoreQuery, SequenceFailed  # noqa: E402
from kernel.drivers.transformers.queries import MAX_PARTS, MAX_TOKENS  # noqa: E402
from tests.support.tiny import CONTEXT, Kernel, Letters, admit, build, ready  # noqa: E402

LLAMA = ready("Llama")
MODELS = {"decoder": LLAMA, "modules": ready("Llama", mlp_bias=True)}
PROMPT = "The prompt that all of these continuations have in common: "
CONTINUATIONS = ["yes", "no", "n", "a much longer one, of more than a tile"]
TEXTS = ["one text", "another text, longer than the first one by far", "one text", "x"]


@cache
def reference(kind: str) -> Any:
    model = build("Llama", mlp_bias=kind == "modules")
    model.set_attn_implementation("eager")
    return model


def expected_logprob(kind: str, continuation: str) -> float:
    ids = Letters().encode(PROMPT + continuation)
    with torch.inference_mode():
        logprobs = reference(kind)(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(logprobs[place - 1, ids[place]]) for place in range(len(PROMPT), len(ids)))


def expected_vector(kind: str, text: str) -> list[float]:
    ids = torch.tensor([Letters().encode(text)])
    with torch.inference_mode():
        states = reference(kind)(ids, output_hidden_states=True).hidden_states[-1][0].double()
    mean = states.mean(0)
    return [float(number) for number in mean / mean.norm()]


def crowded(kernel: Kernel, seed: int) -> Kernel:
    """Add other sequences that join and leave, and steps of random times, so that prompts are cut elsewhere."""
    rng = random.Random(seed)
    kernel.seconds = lambda spans: rng.choice([0.001, 0.01, 0.1])
    first = [admit(100 + number, "n" * rng.randint(1, 60), max_tokens=rng.randint(1, 30)) for number in range(4)]
    for number in range(20):
        later = admit(200 + number, "n" * rng.randint(1, 90), max_tokens=rng.randint(1, 20))
        kernel.during[rng.randint(0, 12)] = [later]
    kernel.said.extend(first)
    return kernel


@pytest.mark.parametrize("kind", MODELS)
def test_a_score_is_the_sum_of_the_models_own_logprobs(kind: str) -> None:
    kernel = Kernel(MODELS[kind]).run(ScoreQuery(1, PROMPT, CONTINUATIONS))
    (scored,) = kernel.of(Scored)
    assert scored.logprobs == pytest.approx([expected_logprob(kind, text) for text in CONTINUATIONS], abs=1e-3)
    assert scored.tokens == [len(text) for text in CONTINUATIONS]
    assert scored.prompt_tokens == len(PROMPT)
    assert kernel.memory.used == 0
    assert kernel.of(Admitted) == []


def test_the_continuations_of_a_score_share_their_prompt() -> None:
    kernel = Kernel(LLAMA).run(ScoreQuery(1, PROMPT, CONTINUATIONS))
    ideal = len(PROMPT) + sum(len(text) for text in CONTINUATIONS)
    assert kernel.rows <= ideal
    again = kernel.rows
    kernel.run(ScoreQuery(2, PROMPT, CONTINUATIONS))
    assert kernel.rows - again <= ideal - len(PROMPT) + len(CONTINUATIONS)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("seed", range(4))
def test_scores_and_vectors_are_the_same_in_any_company(kind: str, seed: int) -> None:
    calls = [ScoreQuery(1, PROMPT, CONTINUATIONS), EmbedQuery(2, [*TEXTS, PROMPT * 3])]
    alone = Kernel(MODELS[kind]).run(*calls)
    kernel = crowded(Kernel(MODELS[kind]), seed).run(*calls)
    assert kernel.of(Scored) == alone.of(Scored)
    assert kernel.of(Embedded) == alone.of(Embedded)
    assert kernel.of(SequenceFailed) == []


@pytest.mark.parametrize("kind", MODELS)
def test_a_vector_is_the_mean_of_the_last_states_and_of_length_one(kind: str) -> None:
    (embedded,) = Kernel(MODELS[kind]).run(EmbedQuery(1, TEXTS)).of(Embedded)
    for text, vector in zip(TEXTS, embedded.vectors, strict=True):
        assert math.hypot(*vector) == pytest.approx(1, abs=1e-6)
        assert vector == pytest.approx(expected_vector(kind, text), abs=1e-4)
    assert embedded.vectors[0] == embedded.vectors[2]
    assert embedded.prompt_tokens == sum(len(text) for text in TEXTS)


def test_a_text_in_chunks_has_the_vector_of_the_whole() -> None:
    text = "a text of many tokens, " * 9
    vectors = [
        Kernel(LLAMA, most=most).run(EmbedQuery(1, [text])).of(Embedded)[0].vectors for most in (16, 32, 64, 256)
    ]
    assert all(vector == vectors[0] for vector in vectors)


@pytest.mark.parametrize(
    ("call", "code", "words"),
    [
        (ScoreQuery(1, "prompt", []), "InvalidPrompt", "continuations"),
        (ScoreQuery(1, "prompt", ["fine", ""]), "InvalidPrompt", "empty"),
        (ScoreQuery(1, "x" * 250, ["y" * 8]), "ContextOverflow", "257"),
        (EmbedQuery(1, []), "InvalidPrompt", "texts"),
        (EmbedQuery(1, ["fine", "x" * 257]), "ContextOverflow", str(CONTEXT)),
    ],
)
def test_what_cannot_be_scored_or_embedded_is_refused_by_name(
    call: ScoreQuery | EmbedQuery, code: str, words: str
) -> None:
    kernel = Kernel(LLAMA).run(call, EmbedQuery(2, ["another"]))
    (failed,) = kernel.of(SequenceFailed)
    assert (failed.sequence, failed.error.code) == (1, code)
    assert words in failed.error.message
    assert [embedded.sequence for embedded in kernel.of(Embedded)] == [2]
    assert len(kernel.batches) == 1


def test_prompt_and_continuation_may_fill_the_context() -> None:
    (scored,) = Kernel(LLAMA).run(ScoreQuery(1, "x" * 250, ["y" * 7])).of(Scored)
    assert scored.tokens == [7]  # the last token is scored and not run


@pytest.mark.parametrize("call", [ScoreQuery(1, PROMPT, CONTINUATIONS), EmbedQuery(1, [PROMPT, PROMPT])])
def test_cancel_ends_all_parts_and_frees_their_memory(call: ScoreQuery | EmbedQuery) -> None:
    kernel = Kernel(LLAMA, most=16)
    kernel.during = {1: [Cancel(1)]}
    kernel.run(call)
    assert kernel.sent[-1] == Done(1, "cancelled")
    assert len(kernel.batches) == 2
    assert kernel.memory.used == 0


@pytest.mark.parametrize(
    "call", [ScoreQuery(1, "ab", ["cd"] * 500), EmbedQuery(1, ["abcd"] * 500)], ids=["score", "embed"]
)
def test_a_short_call_beside_hundreds_of_texts_runs_at_once(call: ScoreQuery | EmbedQuery) -> None:
    kernel = Kernel(LLAMA, most=64)
    kernel.during = {1: [admit(2, max_tokens=2)]}
    kernel.run(call)
    first = next(number for number, spans in enumerate(kernel.batches) if any(span.generated for span in spans))
    assert first <= 6
    assert max(map(len, kernel.batches)) <= MAX_PARTS + 1
    assert len(kernel.of(Done)) == 1
    assert not kernel.of(SequenceFailed)
    assert kernel.memory.used == 0


def test_long_texts_of_a_query_run_few_at_a_time_and_hold_little_memory() -> None:
    texts = [letter * 200 for letter in "abcdefghijklmnopqrst"]
    kernel = Kernel(LLAMA)
    held: list[int] = []
    kernel.before = lambda spans: held.append(kernel.memory.used)
    (embedded,) = kernel.run(EmbedQuery(1, texts)).of(Embedded)
    assert max(held) <= kernel.memory.size(MAX_TOKENS + 256)
    assert embedded.vectors == [Kernel(LLAMA).run(EmbedQuery(1, [text])).of(Embedded)[0].vectors[0] for text in texts]


def test_the_parts_of_a_query_that_fails_do_not_go_on() -> None:
    kernel = Kernel(LLAMA)

    def fail(spans: Any) -> None:
        if any(span.tokens == Letters().encode("fault") for span in spans):
            raise MemoryError("out of memory")

    kernel.before = fail
    kernel.run(EmbedQuery(1, [*["abcd"] * 50, "fault", *["abcd"] * 150]), admit(2, max_tokens=9))
    assert [failed.sequence for failed in kernel.of(SequenceFailed)] == [1]
    assert not kernel.of(Embedded)
    assert kernel.memory.used == 0
