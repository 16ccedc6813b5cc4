"""From token ids to released text: multi-byte characters, leading spaces, stop strings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("transformers", reason="the package of the transformers driver needs it (extra `local`)")

from kernel.drivers.transformers.detokenizer import INCOMPLETE, WINDOW, Detokenizer
from kernel.drivers.transformers.stops import StopStrings

SHORT = st.text("abc", max_size=30)


def decode_bytes(ids: list[int]) -> str:
    """Decodes tokens that are bytes."""
    return bytes(ids).decode(errors="replace")


def decode_words(ids: list[int]) -> str:
    """Decodes words and, like sentencepiece, drops the space before the first."""
    return "".join(f" {identity}" for identity in ids).removeprefix(" ")


def decode_fallback(ids: list[int]) -> str:
    """Decodes like byte fallback: a run of bytes with one error decodes to errors only."""
    try:
        return bytes(ids).decode()
    except UnicodeDecodeError:
        return INCOMPLETE * len(ids)


@pytest.mark.parametrize("decode", [decode_bytes, decode_fallback])
@given(prompt=st.text(max_size=20), text=st.text(max_size=3 * WINDOW).filter(lambda text: INCOMPLETE not in text))
def test_text_comes_out_whole_and_never_with_part_of_a_character(decode, prompt: str, text: str) -> None:
    detokenizer = Detokenizer(decode, list(prompt.replace(INCOMPLETE, "").encode()))
    released = ""
    for number in text.encode():
        released += detokenizer.push(number)
        assert text.startswith(released)
    assert released == text
    assert detokenizer.flush() == ""


@given(st.binary(max_size=100))
def test_bytes_that_are_no_text_come_out_as_they_would_be_decoded_at_once(data: bytes) -> None:
    detokenizer = Detokenizer(decode_bytes, list(b"x"))
    released = "".join([detokenizer.push(number) for number in data])
    assert released + detokenizer.flush() == data.decode(errors="replace")


def test_an_incomplete_character_is_held_back_and_flushed_at_the_end() -> None:
    detokenizer = Detokenizer(decode_bytes, [])
    assert [detokenizer.push(number) for number in "🙂".encode()[:3]] == ["", "", ""]
    assert detokenizer.flush() == INCOMPLETE


def test_every_word_of_a_continuation_keeps_its_space() -> None:
    detokenizer = Detokenizer(decode_words, [1, 2, 3])
    words = list(range(10, 10 + 3 * WINDOW))
    assert [detokenizer.push(word) for word in words] == [f" {word}" for word in words]


@given(SHORT, st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.lists(st.integers(0, 5), max_size=40))
def test_stop_strings_do_not_depend_on_how_the_text_is_cut(text: str, stops: list[str], cuts: list[int]) -> None:
    scanner = StopStrings(tuple(stops))
    released, rest = "", text
    for cut in cuts:
        released += scanner.push(rest[:cut])
        rest = rest[cut:]
    released += scanner.push(rest) + scanner.flush()
    assert released == cut_at_first_stop(text, stops)
    assert scanner.found == any(stop in text for stop in stops)


def cut_at_first_stop(text: str, stops: list[str]) -> str:
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))]
    return text


def test_what_may_become_a_stop_string_is_held_back_until_it_is_decided() -> None:
    scanner = StopStrings(("END",))
    assert [scanner.push(text) for text in ("one E", "N", "tity E", "ND two")] == ["one ", "", "ENtity ", ""]
    assert scanner.found


@pytest.mark.model
@pytest.mark.parametrize(
    "text",
    [
        "The quick brown fox.",
        "日本語のテキスト、漢字。",
        "👩‍👩‍👧‍👦 family 🙂🎉",
        "naïve café — “quotes”",
        "  indented\n\n\tcode",
    ],
)
def test_the_embedded_tokenizer_streams_what_it_decodes(text: str) -> None:
    from transformers import AutoTokenizer

    from kernel.drivers.transformers.conversion import converted
    from kernel.drivers.transformers.source import locate
    from kernel.drivers.transformers.tokenizer import Tokenizer

    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmosd" / "models"
    cache = Path(os.environ.get("LLMOSD_TEST_CACHE") or default)
    folder = converted(Path(locate("embedded")), cache, lambda stage: None)
    tokenizer = Tokenizer(AutoTokenizer.from_pretrained(folder), frozenset(), "embedded", 49152)
    ids = tokenizer.encode(text * 3)
    detokenizer = Detokenizer(tokenizer.decode, tokenizer.encode("Continue:"))
    pieces = [detokenizer.push(identity) for identity in ids]
    assert "".join(pieces) == text * 3
    assert not any(INCOMPLETE in piece for piece in pieces)
