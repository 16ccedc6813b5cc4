"""Texts that cannot fit are refused without being tokenized; a text that fits is never refused, in any tokenizer."""

from __future__ import annotations

import random
from typing import Any

import pytest

pytest.importorskip("torch", reason="the driver's package needs torch (extra `local`)")

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Core
from transformers import PreTrainedTokenizerFast

from ipc.errors import ContextOverflow
from ipc.syscalls import ChatMessage
from kernel.drivers.transformers.text_limit import LengthBound, bound_of
from kernel.drivers.transformers.tokenizer import Tokenizer

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [("a", "b"), ("ab", "c"), ("Ġ", "abc"), ("Ġ", "Ġ"), ("ĠĠ", "ĠĠ"), ("Ã", "©")]
CONTEXT = 64
ODD = [
    "abc",
    " abc",
    "    ",
    "\t\n",
    "é",
    "e\u0301",
    "\u212b",
    "ᾂ",
    "\u1112\u1161\u11ab",
    "漢字",
    "😀",
    "\x04",
    "\u3000",
    "<s>",
    "K",
    "\xa0",
]


def byte_level(*, letters: list[str] = LETTERS, normalizer: Any = None, before: Any = None, **added: Any) -> Core:
    words = [*letters, *dict.fromkeys("".join(pair) for pair in MERGES)]
    core = Core(models.BPE(vocab={word: place for place, word in enumerate(words)}, merges=MERGES))
    core.normalizer = normalizer
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=before is None)
    core.pre_tokenizer = whole if before is None else pre_tokenizers.Sequence([before, whole])
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken("<s>", **added)])
    return core


def sentencepiece(*, byte_fallback: bool = True, normalizer: Any = None) -> Core:
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abc", "ab", "abc", "▁abc"]
    merges = [("a", "b"), ("ab", "c"), ("▁", "abc")]
    vocabulary = {word: place for place, word in enumerate(words)}
    core = Core(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=byte_fallback))
    core.normalizer = normalizer or normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return core


BOUND = {
    "byte-level": byte_level(),
    "byte-level, some bytes unknown": byte_level(letters=[letter for letter in LETTERS if letter not in "Ąðñ÷ĝ"]),
    "byte-level, NFC": byte_level(normalizer=normalizers.NFC()),
    "byte-level, NFKC, lower case": byte_level(
        normalizer=normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    ),
    "byte-level, stripped": byte_level(normalizer=normalizers.Strip()),
    "byte-level, space made short": byte_level(normalizer=normalizers.Replace(Regex(r"\s+"), " ")),
    "byte-level, words": byte_level(before=pre_tokenizers.WhitespaceSplit()),
    "byte-level, split": byte_level(before=pre_tokenizers.Split(Regex(r"\d"), "isolated")),
    "byte-level, greedy tokens": byte_level(lstrip=True, rstrip=True),
    "byte fallback": sentencepiece(),
}
NO_BOUND = {
    "unknown letters": sentencepiece(byte_fallback=False),
    "accents dropped": byte_level(normalizer=normalizers.StripAccents()),
    "text dropped": byte_level(before=pre_tokenizers.Split(Regex(r"\d"), "removed")),
    "words": Core(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>")),
    "longer made shorter": byte_level(normalizer=normalizers.Replace("aa", "a")),
}


@pytest.mark.parametrize("kind", BOUND)
def test_no_text_has_fewer_tokens_than_its_bound_says(kind: str) -> None:
    core = BOUND[kind]
    bound = bound_of(core)
    assert bound is not None
    rng = random.Random(kind)
    texts = [part * count for part in ODD for count in (1, 3, 50)]
    texts += ["".join(rng.choices(ODD, k=rng.randint(1, 40))) for _ in range(400)]
    texts += [rng.choice(ODD) + "abc" * 20 + rng.choice(ODD), "<s>" + " " * 500, " " * 500 + "<s>", "abc" * 500]
    for text in texts:
        assert bound.tokens(text) <= len(core.encode(text).ids), text


@pytest.mark.parametrize("kind", NO_BOUND)
def test_a_tokenizer_that_may_make_little_of_any_text_has_no_bound(kind: str) -> None:
    assert bound_of(NO_BOUND[kind]) is None


def test_a_tokenizer_of_another_kind_has_no_bound() -> None:
    assert bound_of(None) is None


def test_ordinary_bounds_are_of_use() -> None:
    assert bound_of(BOUND["byte-level"]) == LengthBound(4)
    assert bound_of(BOUND["byte fallback"]) == LengthBound(len("<0x00>"))


class Counting(PreTrainedTokenizerFast):
    """Counts the texts that it tokenizes."""

    counted = 0

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.counted += 1
        return super().__call__(*args, **options)


@pytest.mark.parametrize("prompt", ["a" * 10_000, [ChatMessage("user", "a" * 10_000)]], ids=["text", "chat"])
def test_a_prompt_that_cannot_fit_is_refused_with_both_lengths_and_never_tokenized(prompt: Any) -> None:
    hf = Counting(tokenizer_object=BOUND["byte-level"])
    hf.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    codec = Tokenizer(hf, frozenset(), "tiny", 300, CONTEXT)
    words = r"10000 characters has at least 2500 tokens .* context of 64 tokens"
    with pytest.raises(ContextOverflow, match=words) as caught:
        codec.encode(prompt)
    assert (caught.value.data["prompt_tokens"], hf.counted) == (2500, 0)
    assert len(codec.encode("abc" * 80)) == 80  # its length does not show that it is too long: the engine counts


def test_a_long_text_that_the_template_cuts_is_not_refused() -> None:
    hf = Counting(tokenizer_object=BOUND["byte-level"])
    hf.chat_template = "{% for message in messages %}{{ message.content.strip()[:3] }}{% endfor %}"
    codec = Tokenizer(hf, frozenset(), "tiny", 300, CONTEXT)
    assert len(codec.encode([ChatMessage("user", " " * 10_000 + "abcd" * 10_000)])) == 1
