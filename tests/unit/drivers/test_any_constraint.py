"""Any constraint with any kind of tokenizer: a random model's reply fits it, whatever texts the constraint contains.

Among these texts are the names of special tokens. The replies are checked with `json`, `re` and a small validator.
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the driver runs torch models (extra `local`)")
pytest.importorskip("llguidance", reason="constraints are compiled by llguidance (extra `local`)")

from ipc.syscalls import Constraint, Sampling  # noqa: E402
from kernel.drivers.protocol import Admit, Done, SequenceFailed  # noqa: E402
from kernel.drivers.transformers.tokenizer import Tokenizer  # noqa: E402
from tests.support.tiny import Kernel, Ready, ready  # noqa: E402
from tests.support.tokenizers_by_kind import CORPUS, END, KINDS, tokenizer  # noqa: E402

CONSTRAINABLE = [kind for kind in KINDS if kind != "words"]
PADDED = 448  # logits of the model: more than any of the tokenizers has ids
NAMES = ["<|im_end|>", "</s>", "<s>", "<unk>", "<tool>"]
KNOWN = sorted({letter for line in CORPUS for letter in line} - {"\n", "\t"})  # Unigram models know no other letters
FEW = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
ALL = settings(FEW, max_examples=500)


@cache
def codec(kind: str, vocabulary: int = PADDED) -> Tokenizer:
    return Tokenizer(tokenizer(kind), frozenset({END}), kind, vocabulary)


@cache
def model(vocabulary: int = PADDED) -> Ready:
    return ready("Llama", vocab_size=vocabulary, initializer_range=0.2)


BYTES = ("bytes", "ignoring merges")  # the kinds that can write every character


def texts(kind: str) -> Any:
    """Texts in which names of special tokens are frequent."""
    letters = (
        st.sampled_from(KNOWN)
        if "unigram" in kind
        else st.characters(exclude_categories=["Cs"], exclude_characters="" if kind in BYTES else "▁")
    )
    pieces = st.lists(st.sampled_from(NAMES) | st.sampled_from(["yes", "no", "a", " "]) | letters, max_size=4)
    return pieces.map("".join)


def run(kind: str, constraint: str, value: Any, vocabulary: int = PADDED, **sampling: Any) -> Kernel:
    text = value if isinstance(value, str) else json.dumps(value)
    sampling = {"max_tokens": 200, "temperature": 1.5, "seed": 1} | sampling
    asked = Sampling(constraint=Constraint(constraint, text), **sampling)  # type: ignore[arg-type]
    return Kernel(model(vocabulary), codec(kind, vocabulary)).run(Admit(1, "say", asked, 1000))


def reply(kind: str, constraint: str, value: Any, **sampling: Any) -> str:
    kernel = run(kind, constraint, value, **sampling)
    assert kernel.of(Done) == [Done(1, "stop")], (kernel.of(SequenceFailed), kernel.text)
    return kernel.text[1]


SEEDS = st.integers(0, 2**63 - 1)


@FEW
@given(st.sampled_from(CONSTRAINABLE), st.data(), SEEDS)
def test_a_reply_is_one_of_the_choices(kind: str, data: st.DataObject, seed: int) -> None:
    is_one_of_the_choices(kind, data, seed)


@pytest.mark.soak
@ALL
@given(st.sampled_from(CONSTRAINABLE), st.data(), SEEDS)
def test_many_replies_are_one_of_their_choices(kind: str, data: st.DataObject, seed: int) -> None:
    is_one_of_the_choices(kind, data, seed)


def is_one_of_the_choices(kind: str, data: st.DataObject, seed: int) -> None:
    choices = data.draw(st.lists(texts(kind).filter(bool), min_size=1, max_size=5))
    choices += data.draw(st.lists(st.sampled_from(choices).map(lambda choice: choice[:2]) | texts(kind), max_size=2))
    choices += choices[:1]
    temperature = data.draw(st.sampled_from([0, 1.0, 100.0]))
    assert reply(kind, "choices", [*filter(bool, choices)], seed=seed, temperature=temperature) in choices


def schemas(kind: str) -> Any:
    """Schemas of values that need few tokens."""
    names = st.lists(texts(kind), max_size=2, unique=True)
    leaves = st.one_of(
        texts(kind).map(lambda text: {"const": text}),
        st.lists(texts(kind), min_size=1, max_size=3).map(lambda values: {"enum": values}),
        st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": "integer", "minimum": -9, "maximum": 99}]),
        st.integers(0, 3).map(lambda size: {"type": "string", "maxLength": size}),
    )
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            inner.map(lambda item: {"type": "array", "items": item, "maxItems": 2}),
            st.tuples(names, inner).map(
                lambda pair: {
                    "type": "object",
                    "properties": dict.fromkeys(pair[0], pair[1]),
                    "required": pair[0],
                    "additionalProperties": False,
                }
            ),
        ),
        max_leaves=3,
    )


def fits(value: Any, schema: dict[str, Any]) -> bool:
    if "const" in schema or "enum" in schema:
        return value in schema.get("enum", [schema.get("const")])
    match schema["type"]:
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
        case "integer":
            return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
        case "string":
            return isinstance(value, str) and len(value) <= schema["maxLength"]
        case "array":
            return len(value) <= schema["maxItems"] and all(fits(item, schema["items"]) for item in value)
    return list(value) == schema["required"] and all(
        fits(value[name], part) for name, part in schema["properties"].items()
    )


@FEW
@given(st.sampled_from(CONSTRAINABLE), st.data(), SEEDS)
def test_a_reply_parses_and_fits_its_schema(kind: str, data: st.DataObject, seed: int) -> None:
    parses_and_fits(kind, data, seed)


@pytest.mark.soak
@ALL
@given(st.sampled_from(CONSTRAINABLE), st.data(), SEEDS)
def test_many_replies_parse_and_fit_their_schema(kind: str, data: st.DataObject, seed: int) -> None:
    parses_and_fits(kind, data, seed)


def parses_and_fits(kind: str, data: st.DataObject, seed: int) -> None:
    schema = data.draw(schemas(kind))
    text = reply(kind, "schema", schema, seed=seed)
    assert fits(json.loads(text), schema), (text, schema)


CLASSES = [r"\d", r"\D", r"\w", r"\W", r"\s", r"\S", r"[\d\w]", r"[^\s\d]", ".", "[a-z]", r"[^a]", r"[\w.-]", r"\u00e9"]


PARTS = st.lists(st.tuples(st.sampled_from(CLASSES), st.sampled_from(["", "?", "{2}", "{1,3}"])), max_size=4)
WITH_ALL_BYTES = st.sampled_from(["bytes", "always"])  # Unigram tokenizers may lack the characters of a class


@FEW
@given(WITH_ALL_BYTES, st.data(), SEEDS, PARTS)
def test_a_reply_matches_its_regex_as_python_reads_it_in_ascii(
    kind: str, data: st.DataObject, seed: int, parts: list[tuple[str, str]]
) -> None:
    matches(kind, data, seed, parts)


@pytest.mark.soak
@ALL
@given(WITH_ALL_BYTES, st.data(), SEEDS, PARTS)
def test_many_replies_match_their_regex(
    kind: str, data: st.DataObject, seed: int, parts: list[tuple[str, str]]
) -> None:
    matches(kind, data, seed, parts)


def matches(kind: str, data: st.DataObject, seed: int, parts: list[tuple[str, str]]) -> None:
    other = re.escape(data.draw(texts(kind).filter(lambda text: text.isprintable() and text.isascii())))
    regex = "|".join(["".join(map("".join, parts)) + "x", *([other] if other else [])])
    text = reply(kind, "regex", regex.replace(r"\ ", " "), seed=seed)
    assert re.fullmatch(regex, text, re.ASCII), (text, regex)


def test_the_classes_of_a_grammar_are_those_of_a_regex() -> None:
    grammar = 'start: A "/" B // \\d, and "/"\nA: /\\d{30}/\nB: /[\\w\\/]{30}/'
    assert re.fullmatch(r"[0-9]{30}/[0-9A-Za-z_/]{30}", reply("bytes", "grammar", grammar))


def test_twenty_thousand_choices_are_compiled() -> None:
    choices = [f"choice {number * 7919 % 20_011} of many" for number in range(20_000)]
    assert reply("bytes", "choices", choices) in choices
    assert json.loads(reply("bytes", "schema", {"enum": choices[:10_000]})) in choices


# ---- a tokenizer and a model of different sizes


@pytest.mark.parametrize("kind", CONSTRAINABLE)
def test_a_tokenizer_that_is_larger_than_its_model_writes_with_the_tokens_that_both_have(kind: str) -> None:
    vocabulary = len(tokenizer(kind)) - 5
    kernel = run(kind, "choices", ["walking", "talking <|im_end|>"], vocabulary)
    assert kernel.of(Done) == [Done(1, "stop")], kernel.of(SequenceFailed)
    assert kernel.text[1] in ("walking", "talking <|im_end|>")
    assert max(kernel.ids[1]) < vocabulary


def test_a_text_with_tokens_that_the_model_lacks_is_refused_and_they_are_named() -> None:
    vocabulary = len(tokenizer("bytes")) - 1
    kernel = Kernel(model(vocabulary), codec("bytes", vocabulary)).run(Admit(1, "use a <tool> now", Sampling(), 9))
    (failed,) = kernel.of(SequenceFailed)
    assert failed.error.code == "InvalidPrompt"
    assert f"{vocabulary} ('<tool>')" in failed.error.message


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_is_larger_than_its_tokenizer_draws_no_token_without_text(kind: str) -> None:
    calls = [
        Admit(seed, "say", Sampling(max_tokens=60, temperature=100.0, top_p=1.0, seed=seed), 1000) for seed in (1, 2, 3)
    ]
    kernel = Kernel(model(), codec(kind)).run(*calls)
    assert all(token < len(tokenizer(kind)) for ids in kernel.ids.values() for token in ids)


# ---- what cannot be written


def test_the_sign_by_which_a_tokenizer_writes_a_space_is_refused_by_name() -> None:
    (failed,) = run("always", "schema", {"const": "a▁b"}).of(SequenceFailed)
    assert failed.error.code == "InvalidConstraint"
    assert "U+2581" in failed.error.message
    assert reply("bytes", "schema", {"const": "a▁b"}) == '"a▁b"'


def test_a_character_that_the_vocabulary_lacks_is_refused_by_name() -> None:
    (failed,) = run("unigram", "choices", ["☃"]).of(SequenceFailed)
    assert failed.error.code == "InvalidConstraint"
    assert "vocabulary lacks a character" in failed.error.message


def test_a_tokenizer_that_cannot_be_constrained_is_refused_by_name() -> None:
    (failed,) = run("words", "choices", ["yes"]).of(SequenceFailed)
    assert failed.error.code == "InvalidConstraint"
    assert "WordPiece" in failed.error.message
