"""A continuation begins where its prompt ends, with every kind of tokenizer: "walk" and "ing" make "walking"."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the driver runs torch models (extra `local`)")

from kernel.drivers.protocol import Scored, ScoreQuery, SequenceFailed  # noqa: E402
from kernel.drivers.transformers.continuation import Continuations  # noqa: E402
from kernel.drivers.transformers.tokenizer import Tokenizer  # noqa: E402
from tests.support.tiny import Kernel, build, ready  # noqa: E402
from tests.support.tokenizers_by_kind import END, KINDS, tokenizer  # noqa: E402

VOCABULARY = 448
CONTINUATIONS = ["ing", "ed", " ing", "ing the lazy dog", "!", " (say)"]


@cache
def reference() -> Any:
    model = build("Llama", vocab_size=VOCABULARY)
    model.set_attn_implementation("eager")
    return model


def codec(kind: str, vocabulary: int = VOCABULARY) -> Tokenizer:
    return Tokenizer(tokenizer(kind), frozenset({END}), kind, vocabulary)


def logprob(prompt: list[int], continuation: list[int]) -> float:
    ids = prompt + continuation
    with torch.inference_mode():
        logprobs = reference()(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(logprobs[place - 1, ids[place]]) for place in range(len(prompt), len(ids)))


@pytest.mark.parametrize("kind", KINDS)
def test_prompt_and_continuation_meet_without_a_space(kind: str) -> None:
    both, hf = codec(kind), tokenizer(kind)
    for text in CONTINUATIONS:
        prompt, ids = both.encode("walk"), both.encode_more(text)
        written = hf.decode(prompt + ids, clean_up_tokenization_spaces=False)
        expected = "walk" + text
        if kind == "words":  # this kind writes a space before each word and sign, and none within a word
            written, expected = written.replace(" ", ""), expected.replace(" ", "")
            assert hf.convert_ids_to_tokens(ids)[0].startswith("##") == text[0].isalpha()
        assert written == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_continuation_has_the_tokens_of_the_whole_text_unless_one_of_them_spans_the_seam(kind: str) -> None:
    both = codec(kind)
    for text in CONTINUATIONS:
        prompt, whole = both.encode("walk"), both.encode("walk" + text)
        if whole[: len(prompt)] == prompt and kind != "words":
            assert both.encode_more(text) == whole[len(prompt) :]


def test_no_token_spans_the_seam() -> None:
    both, hf = codec("words"), tokenizer("words")
    assert hf.convert_ids_to_tokens(both.encode("walking")) == ["walking"]
    assert hf.convert_ids_to_tokens(both.encode("walk") + both.encode_more("ing")) == ["walk", "##ing"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_is_the_models_own_probability_of_the_continued_text(kind: str) -> None:
    both = codec(kind)
    kernel = Kernel(ready("Llama", vocab_size=VOCABULARY), both).run(ScoreQuery(1, "walk", CONTINUATIONS))
    (scored,) = kernel.of(Scored)
    prompt = both.encode("walk")
    continuations = [both.encode_more(text) for text in CONTINUATIONS]
    assert scored.logprobs == pytest.approx([logprob(prompt, ids) for ids in continuations], abs=1e-3)
    assert scored.tokens == [len(ids) for ids in continuations]


def test_a_prompt_with_tokens_that_the_model_lacks_is_refused_and_they_are_named() -> None:
    vocabulary = len(tokenizer("bytes")) - 1
    model = ready("Llama", vocab_size=vocabulary)
    kernel = Kernel(model, codec("bytes", vocabulary)).run(ScoreQuery(1, "walk <tool>", ["ing"]))
    (failed,) = kernel.of(SequenceFailed)
    assert failed.error.code == "InvalidPrompt"
    assert "<tool>" in failed.error.message


class Interrupted:
    """A tokenizer that calls `meanwhile` while it is first described."""

    def __init__(self, kind: str, meanwhile: Callable[[], None]) -> None:
        self._hf = tokenizer(kind)
        self._meanwhile: Callable[[], None] | None = meanwhile

    def __call__(self, text: str, **options: Any) -> Any:
        return self._hf(text, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._hf, name)

    @property
    def backend_tokenizer(self) -> Any:
        meanwhile, self._meanwhile = self._meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return self._hf.backend_tokenizer


@pytest.mark.parametrize("kind", ["always", "normalizer", "words"])
def test_two_threads_that_score_first_at_once_both_continue_the_prompt(kind: str) -> None:
    found: list[list[int]] = []

    def meanwhile() -> None:
        other.start()
        other.join(0.1)  # it has to wait until the tokenizer is described; if it does not, it ends by then

    both = Continuations(Interrupted(kind, meanwhile))
    other = threading.Thread(target=lambda: found.append(both.encode("ing")))
    found.append(both.encode("ing"))
    other.join()
    assert found == [Continuations(tokenizer(kind)).encode("ing")] * 2
