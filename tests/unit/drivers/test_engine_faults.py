"""One bad call never harms another in its batch.

Steps that raise, logits with a NaN, prompts that cannot be encoded and tokens that cannot be decoded: each fails its
own call, once, by name.
"""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the driver runs torch models (extra `local`)")

from kernel.drivers.protocol import (  # noqa: E402
    Admit,
    Done,
    Embedded,
    EmbedQuery,
    Ended,
    Resize,
    Scored,
    ScoreQuery,
    SequenceFailed,
)
from kernel.drivers.transformers.attention import Span  # noqa: E402
from kernel.drivers.transformers.forward import ForwardOutput  # noqa: E402
from tests.support.tiny import Kernel, Letters, admit, alone, ready  # noqa: E402

POISON = 96  # a token in a prompt at which the forward pass raises, or makes its numbers NaN
BAD = "bad\x7f"
LLAMA = ready("Llama")


def poisoned(span: Span) -> bool:
    return POISON in span.tokens and not span.generated


def raise_at_poison(spans: list[Span]) -> None:
    if any(poisoned(span) for span in spans):
        raise RuntimeError("poison")


def blank_at_poison(spans: list[Span], output: ForwardOutput) -> ForwardOutput:
    first = hidden = 0
    logits = output.logits.clone()
    for span in spans:
        if poisoned(span):
            logits[first : first + span.logits] = torch.nan
            if span.hidden:
                output.hidden[hidden].fill_(torch.nan)
        first += span.logits
        hidden += span.hidden
    return ForwardOutput(logits, output.hidden)


def failure(kernel: Kernel) -> Any:
    (failed,) = kernel.of(SequenceFailed)
    return failed


def raising(kernel: Kernel) -> Kernel:
    kernel.before = raise_at_poison
    return kernel


def blanking(kernel: Kernel) -> Kernel:
    kernel.after = blank_at_poison
    return kernel


def test_a_sequence_that_breaks_the_step_fails_alone() -> None:
    kernel = raising(Kernel(LLAMA))
    kernel.during = {2: [admit(2, BAD)]}
    kernel.run(admit(1), admit(3))
    assert (failure(kernel).sequence, failure(kernel).error.code) == (2, "DriverFailed")
    assert "poison" in failure(kernel).error.message
    for sequence in (1, 3):
        assert kernel.ids[sequence] == alone(admit(sequence))
    assert kernel.memory.used == 0


def test_logits_that_are_no_numbers_are_named_and_fail_their_sequence_alone() -> None:
    kernel = blanking(Kernel(LLAMA)).run(admit(1), admit(2, BAD))
    assert (failure(kernel).sequence, failure(kernel).error.code) == (2, "DriverFailed")
    assert "nan" in failure(kernel).error.message
    assert kernel.ids[1] == alone(admit(1))


def test_keys_that_are_no_numbers_reach_nobody_who_shares_the_beginning() -> None:
    kernel = Kernel(LLAMA)
    start = "a beginning that both have in common, "

    def spoil(spans: list[Span], output: ForwardOutput) -> ForwardOutput:
        for span in spans:
            if poisoned(span):
                kernel.memory.tokens(span.slab, span.start + span.tokens.index(POISON), span.end).fill_(torch.nan)
        return blank_at_poison(spans, output)

    kernel.after = spoil
    kernel.run(admit(1, start + BAD), admit(2, start + "on"), admit(3, start + "or"))
    assert failure(kernel).sequence == 1
    for sequence, prompt in ((2, start + "on"), (3, start + "or")):
        assert kernel.ids[sequence] == alone(admit(sequence, prompt))


def test_an_error_while_decoding_fails_its_sequence_alone() -> None:
    class Picky(Letters):
        def decode(self, ids: list[int]) -> str:
            if "bad" in super().decode(ids) and len(ids) > 5:
                raise ValueError("cannot decode")
            return super().decode(ids)

    kernel = Kernel(LLAMA, Picky()).run(admit(1), admit(2, "bad"))
    assert [failed.sequence for failed in kernel.of(SequenceFailed)] == [2]
    assert kernel.ids[1] == alone(admit(1))
    assert len(kernel.ids[2]) == 2


def test_an_error_while_encoding_fails_its_call_alone() -> None:
    kernel = Kernel(LLAMA).run(admit(1), Admit(2, [], admit(2).sampling, 10))  # a list is no text
    assert failure(kernel).sequence == 2
    assert kernel.ids[1] == alone(admit(1))


@pytest.mark.parametrize("fault", [raising, blanking])
def test_a_score_whose_parts_all_break_fails_once(fault: Any) -> None:
    kernel = fault(Kernel(LLAMA))
    kernel.run(
        admit(1),
        ScoreQuery(2, "a prompt ", [BAD + BAD, BAD + "no", "fine"]),
        ScoreQuery(3, "another ", ["fine", "too"]),
    )
    assert (failure(kernel).sequence, failure(kernel).error.code) == (2, "DriverFailed")
    assert [scored.sequence for scored in kernel.of(Scored)] == [3]
    assert kernel.ids[1] == alone(admit(1))
    assert kernel.memory.used == 0


@pytest.mark.parametrize("fault", [raising, blanking])
def test_an_embedding_whose_parts_all_break_fails_once(fault: Any) -> None:
    kernel = fault(Kernel(LLAMA)).run(admit(1), EmbedQuery(2, [BAD, "fine", BAD]), EmbedQuery(3, ["fine"]))
    assert (failure(kernel).sequence, failure(kernel).error.code) == (2, "DriverFailed")
    assert [embedded.sequence for embedded in kernel.of(Embedded)] == [3]
    assert kernel.ids[1] == alone(admit(1))
    assert kernel.memory.used == 0


def test_memory_that_a_failed_part_gave_back_is_not_written_by_its_siblings() -> None:
    """The next owner of a slab relies on zeros: attention reads beyond its last token, masked."""
    kernel = raising(Kernel(LLAMA))
    kernel.run(admit(1), EmbedQuery(2, [BAD, "a longer one, which does not break"]))
    assert kernel.of(Done)
    slabs = [kernel.memory.allocate(0) for _ in range(kernel.memory.free_slabs)]
    assert not any(kernel.memory.tokens(slab, 0, kernel.memory.capacity).any() for slab in slabs)


def test_an_error_in_a_message_about_the_caches_ends_no_call(capsys: pytest.CaptureFixture[str]) -> None:
    kernel = Kernel(LLAMA)

    def broken(*_: object) -> None:
        raise RuntimeError("as planned")

    kernel.allocator.cache.process_ended = broken  # type: ignore[method-assign]
    kernel.allocator.cache.make_room = broken
    kernel.run(Ended([1]), Resize(10**9))
    assert capsys.readouterr().err.count("as planned") == 2
