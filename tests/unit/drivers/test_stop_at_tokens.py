"""Stop strings against the tokens of a real tokenizer: they may span tokens, and contain the names of special tokens.

An end token ends a constrained reply only where the reply fits.
"""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch", reason="the driver runs torch models (extra `local`)")

from ipc.errors import InvalidConstraint
from ipc.syscalls import Sampling
from kernel.drivers.protocol import Admit
from kernel.drivers.transformers.sequence import EngineLimits, EngineSequence
from kernel.drivers.transformers.tokenizer import Tokenizer
from tests.support.tokenizers_by_kind import END, tokenizer

KINDS = ["bytes", "always", "unigram plain"]


def said(kind: str, reply: str, stop: tuple[str, ...], matcher: Any = None) -> tuple[str, str | None, int]:
    """The text of a sequence that makes the tokens of `reply`, why it ended, and how many tokens were left then."""
    hf = tokenizer(kind)
    codec = Tokenizer(hf, frozenset({END}), kind, len(hf))
    ids = hf("x" + reply, add_special_tokens=False)["input_ids"]
    first = hf("x", add_special_tokens=False)["input_ids"]
    assert ids[: len(first)] == first
    ids = ids[len(first) :]
    admit = Admit(1, "x", Sampling(stop=stop, max_tokens=len(ids)), 1000)
    sequence = EngineSequence(admit, first, codec, EngineLimits(200, 100))
    if matcher is not None:
        sequence.constrain(matcher)
    text = ""
    while ids and sequence.ended is None:
        text += sequence.accept(ids.pop(0))
    return text, sequence.ended, len(ids)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("reply", "stop", "text"),
    [
        (" walk<|im_end|> talk", ("<|im_end|>",), " walk"),
        ("<|im_end|> talk", ("<|im_end|>",), ""),
        (" walk<|im_end|> talk", ("lk<|im_end|>",), " wa"),
        (" walk<|im_end|> talk", ("<|im_end|>z", "<|im_end|>"), " walk"),
        (" walk<s><|im_end|> talk", ("<s><|im_end|>",), " walk"),
        (" walking talk", ("lkin",), " wa"),
        (" walk <tool> talk", ("<tool>",), " walk "),
    ],
)
def test_a_reply_ends_before_a_stop_string(kind: str, reply: str, stop: tuple[str, ...], text: str) -> None:
    found, ended, left = said(kind, reply, stop)
    assert (found, ended) == (text, "stop")
    assert left > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", [(), ("zz",), ("<|im_end|>zz",), ("lk<|im_end|>zz",), ("a reply of many words" * 9,)])
def test_special_tokens_are_never_text(kind: str, stop: tuple[str, ...]) -> None:
    assert said(kind, " walk<|im_end|><s> no", stop)[:2] == (" walk no", "length")
    assert said(kind, " walk<|im_end|>", stop)[:2] == (" walk", "length")
    assert said(kind, " walk</s>", stop)[:2] == (" walk", "stop")


class Unfinished:
    """A matcher whose reply is not whole yet."""

    ended = False

    def accept(self, token: int) -> None:
        """Accept any token."""

    def may_end(self) -> bool:
        return False

    def bytes_of(self, token: int) -> bytes:
        return b"?"


def test_an_end_token_ends_no_reply_that_does_not_fit_yet() -> None:
    assert said("bytes", " walk", (), Unfinished())[:2] == ("?", "length")
    with pytest.raises(InvalidConstraint, match="end token 2"):
        said("bytes", " walk</s> talk", (), Unfinished())
