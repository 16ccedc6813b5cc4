"""Sequences in the engine of the transformers driver: they join, get leases, park, continue and end.

Their tokens are compared with transformers' own generation, and with those of each sequence alone.
"""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

import pytest

from ipc.syscalls import Sampling
from kernel.drivers.protocol import (
    Admit,
    Admitted,
    Bundle,
    Cancel,
    Done,
    Parked,
    Renew,
    Restored,
    Revoke,
    SequenceFailed,
)
from tests.support.tiny import CONTEXT, Kernel, Letters, admit, alone, build, ready, torch

LLAMA = ready("Llama")


@cache
def reference() -> Any:
    """The model that transformers itself runs."""
    model = build("Llama")
    model.set_attn_implementation("eager")
    return model


def test_packed_sequences_say_what_the_model_says_to_each_alone() -> None:
    messages = [admit(sequence) for sequence in range(1, 6)]
    kernel = Kernel(LLAMA).run(*messages)
    for message in messages:
        ids = Letters().encode(message.prompt)
        out = reference().generate(
            torch.tensor([ids]), max_new_tokens=10, do_sample=False, pad_token_id=0, eos_token_id=[]
        )
        assert kernel.ids[message.sequence] == out[0, len(ids) :].tolist() == alone(message)
    assert kernel.of(Done) == [Done(sequence, "length") for sequence in range(1, 6)]
    assert len(kernel.batches) == 10


def test_sequences_join_and_leave_between_steps_without_changing_each_other() -> None:
    kernel = Kernel(LLAMA)
    kernel.during = {2: [admit(2, max_tokens=3)], 4: [admit(3)]}
    kernel.run(admit(1))
    for sequence, count in ((1, 10), (2, 3), (3, 10)):
        assert kernel.ids[sequence] == alone(admit(sequence))[:count]
    assert kernel.of(Done)[-1] == Done(3, "length")


def test_each_sequence_is_sampled_as_its_own_call_says() -> None:
    message = admit(1, temperature=1.5, top_p=0.9, seed=5)
    kernel = Kernel(LLAMA).run(admit(2), message, admit(3, temperature=1, seed=5), admit(4, temperature=1, top_k=1))
    assert kernel.ids[1] == alone(message)
    assert kernel.ids[1] != alone(admit(1))
    assert kernel.ids[4] == alone(admit(4))


def test_logprobs_come_with_each_token_for_whom_they_are_asked() -> None:
    kernel = Kernel(LLAMA).run(admit(1, logprobs=True), admit(2))
    ids = Letters().encode(admit(1).prompt) + kernel.ids[1]
    logits = reference()(torch.tensor([ids])).logits[0].log_softmax(-1).tolist()
    expected = [logits[place - 1][ids[place]] for place in range(len(ids) - 10, len(ids))]
    assert kernel.logprobs[1] == pytest.approx(expected, abs=1e-4)
    assert kernel.logprobs[2] == []


def test_cancel_ends_a_sequence_before_the_next_step_and_frees_its_memory() -> None:
    kernel = Kernel(LLAMA)
    kernel.during = {3: [Cancel(1)]}
    kernel.run(admit(1))
    assert kernel.sent[-1] == Done(1, "cancelled")
    assert kernel.ids[1] == alone(admit(1))[:4]
    assert kernel.memory.used == 0


def test_cancel_before_the_first_step_costs_no_step() -> None:
    kernel = Kernel(LLAMA).run(admit(1), Cancel(1))
    assert kernel.sent == [Admitted(1, Letters().encode(admit(1).prompt)), Done(1, "cancelled")]
    assert kernel.batches == []


def test_messages_for_a_sequence_that_ended_are_ignored() -> None:
    kernel = Kernel(LLAMA).run(admit(1))
    sent = list(kernel.sent)
    assert kernel.run(Cancel(1), Renew(1, 5), Revoke(1)).sent == sent


def test_a_sequence_parks_at_its_lease_and_renewal_goes_on() -> None:
    kernel = Kernel(LLAMA).run(admit(1, lease=4))
    assert kernel.sent[-1] == Parked(1)
    assert len(kernel.ids[1]) == 4
    kernel.run(Renew(1, 3))
    assert len(kernel.ids[1]) == 7
    kernel.run(Renew(1, 30))
    assert kernel.ids[1] == alone(admit(1))
    assert kernel.of(Parked) == [Parked(1), Parked(1)]
    assert len(kernel.batches) == 10  # no token was computed twice


def test_an_early_renewal_leaves_no_gap() -> None:
    kernel = Kernel(LLAMA)
    kernel.during = {1: [Renew(1, 20)]}
    assert len(kernel.run(admit(1, lease=3)).ids[1]) == 10
    assert kernel.of(Parked) == []


def test_a_revoked_sequence_parks_once_and_goes_on_when_renewed() -> None:
    kernel = Kernel(LLAMA)
    kernel.during = {2: [Revoke(1), Revoke(1)]}
    kernel.run(admit(1))
    assert len(kernel.ids[1]) == 3
    assert kernel.of(Parked) == [Parked(1)]
    assert kernel.run(Renew(1, 100)).ids[1] == alone(admit(1))


def test_a_sequence_revoked_within_its_prompt_goes_on_there() -> None:
    message = admit(1, "x" * 100)
    kernel = Kernel(LLAMA, most=32)
    kernel.during = {1: [Revoke(1)]}
    kernel.run(message)
    assert kernel.of(Parked) == [Parked(1)]
    assert kernel.run(Renew(1, 100)).ids[1] == alone(message)
    assert kernel.rows == 100 + 9


@pytest.mark.parametrize("count", range(10))
def test_a_new_incarnation_goes_on_where_the_old_one_died(count: int) -> None:
    sampling = Sampling(max_tokens=10, temperature=1, seed=3)
    whole = Kernel(LLAMA).run(Admit(1, "Some prompt", sampling, 100))
    before = Kernel(LLAMA).run(Admit(1, "Some prompt", sampling, count))
    recovered = Kernel(LLAMA).run(
        Admit(1, "", sampling, 100, Letters().encode("Some prompt"), before.ids[1], len(before.text[1]))
    )
    assert before.text[1] + recovered.text[1] == whole.text[1]
    assert before.ids[1] + recovered.ids[1] == whole.ids[1]
    assert recovered.of(Admitted) == []
    assert recovered.of(Done) == [Done(1, "length")]
    assert [restored.recomputed for restored in recovered.of(Restored)] == [True] * (count > 0)


def test_generated_tokens_are_computed_again_in_few_steps() -> None:
    ids = alone(admit(1))
    kernel = Kernel(LLAMA).run(Admit(1, "", admit(1).sampling, 100, Letters().encode(admit(1).prompt), ids[:8]))
    assert ids[:8] + kernel.ids[1] == ids
    assert len(kernel.batches) == 3  # the prompt, eight tokens at once, and one


def test_many_generated_tokens_are_replayed_in_a_thread_while_a_neighbour_runs() -> None:
    """The thread is held until the neighbour has made nine tokens."""

    class Held(Letters):
        def __init__(self) -> None:
            super().__init__()
            self.free = threading.Event()

        def decode(self, ids: list[int]) -> str:
            if threading.current_thread().name.startswith("replay"):
                assert self.free.wait(60)
            return super().decode(ids)

    message = admit(2, "x", max_tokens=240)
    ids = Kernel(LLAMA).run(message).ids[2]
    text = Letters().decode(ids)
    kernel = Kernel(LLAMA, codec := Held())
    kernel.after = lambda spans, output: (codec.free.set() if len(kernel.batches) >= 9 else None) or output
    again = Admit(2, "", message.sampling, 5, Letters().encode("x"), ids[:220], 210)
    kernel.run(again, Renew(2, 95), admit(1))
    assert ids[:220] + kernel.ids[2] == ids
    assert text[:210] + kernel.text[2] == text
    assert kernel.ids[1] == alone(admit(1))
    assert all(len(spans) == 1 for spans in kernel.batches[:9])


def test_a_call_that_is_cancelled_while_its_tokens_are_replayed_is_gone() -> None:
    kernel = Kernel(LLAMA).run(Admit(2, "", Sampling(), 100, [66], [67] * 220), Cancel(2), admit(1))
    assert kernel.of(Done) == [Done(2, "cancelled"), Done(1, "length")]


def test_a_sequence_that_had_ended_when_its_driver_died_ends_at_once() -> None:
    ids = alone(admit(1))
    kernel = Kernel(LLAMA).run(Admit(1, "", Sampling(max_tokens=10), 5, Letters().encode(admit(1).prompt), ids, 8))
    assert kernel.text[1] == Letters().decode(ids)[8:]
    assert kernel.sent[-1] == Done(1, "length")
    assert kernel.batches == []


def test_more_sequences_than_rows_take_turns() -> None:
    messages = [admit(sequence, f"Call {sequence}", max_tokens=4) for sequence in range(1, 21)]
    kernel = Kernel(LLAMA, most=32, max_rows=16).run(*messages)
    assert max(len(spans) for spans in kernel.batches) == 8
    assert {message.sequence: alone(message) for message in messages} == dict(kernel.ids)


def test_prompt_and_reply_may_fill_the_context_and_not_exceed_it() -> None:
    kernel = Kernel(LLAMA).run(admit(1, "x" * 250, max_tokens=6), admit(2, "x" * 250, max_tokens=7))
    assert len(kernel.ids[1]) == 6
    (failed,) = kernel.of(SequenceFailed)
    assert failed.error.code == "ContextOverflow"
    assert failed.error.data == {"prompt_tokens": 250, "max_tokens": 7, "context": CONTEXT}
    assert "250" in failed.error.message
    assert "256" in failed.error.message


def test_without_max_tokens_a_reply_is_bounded_by_the_default_and_the_context() -> None:
    prompts = {1: "x", 2: "x" * 250, 3: "x" * 256}
    kernel = Kernel(LLAMA).run(*[admit(sequence, text, max_tokens=None) for sequence, text in prompts.items()])
    assert [len(kernel.ids[sequence]) for sequence in prompts] == [50, 6, 0]
    assert [failed.error.code for failed in kernel.of(SequenceFailed)] == ["ContextOverflow"]


def test_an_end_of_text_token_ends_the_text_before_it() -> None:
    ids = alone(admit(1))
    end = ids[5]
    kernel = Kernel(LLAMA, Letters(frozenset({end}))).run(admit(1))
    count = ids.index(end) + 1
    assert kernel.ids[1] == ids[:count]
    assert kernel.text[1] == Letters().decode(ids[: count - 1])
    assert kernel.of(Done) == [Done(1, "stop")]


def test_a_stop_string_across_tokens_ends_the_text_before_it() -> None:
    text = Letters().decode(alone(admit(1)))
    stop = text[4:7]
    kernel = Kernel(LLAMA).run(admit(1, stop=(stop,)))
    assert kernel.text[1] == text[: text.index(stop)]
    assert kernel.of(Done) == [Done(1, "stop")]


def test_short_steps_share_a_bundle_and_an_end_sends_it_at_once() -> None:
    kernel = Kernel(LLAMA)
    kernel.seconds = lambda spans: 0.02
    kernel.run(admit(1))
    assert [bundle.steps for bundle in kernel.of(Bundle)] == [3, 3, 3, 1]
    assert sum(bundle.seconds for bundle in kernel.of(Bundle)) == pytest.approx(0.2)


def test_a_sequence_is_admitted_before_its_first_token_is_told() -> None:
    kernel = Kernel(LLAMA)
    kernel.during = {2: [admit(2)], 3: [admit(3)]}
    kernel.run(admit(1))
    admitted: set[int] = set()
    for message in kernel.sent:
        if isinstance(message, Admitted):
            admitted.add(message.sequence)
        elif isinstance(message, Bundle):
            assert {progress.sequence for progress in message.progress} <= admitted
    assert admitted == {1, 2, 3}
