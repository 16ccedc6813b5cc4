"""KV memory is given in order, within quotas, and not for prefixes that other requests have computed.

Computed tokens are counted where the model gets them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the driver runs torch models (extra `local`)")

from ipc.syscalls import Sampling  # noqa: E402
from kernel.drivers.protocol import (  # noqa: E402
    Admit,
    Bundle,
    Cancel,
    Done,
    Ended,
    Parked,
    Renew,
    Resize,
    Revoke,
    ScoreTexts,
    SequenceFailed,
)
from kernel.drivers.transformers.pages import Segment  # noqa: E402
from tests.support.tiny import Kernel, admit, alone, ready  # noqa: E402

LLAMA = ready("Llama")
LONG = ready("Llama", max_position_embeddings=512)
PAGE = 16  # tokens of these models, in each layer


def call(sequence: int, prompt: str, process: int = 0, max_tokens: int = 4) -> Admit:
    return Admit(sequence, prompt, Sampling(max_tokens=max_tokens), 1000, process=process)


def prompt_rows(kernel: Kernel) -> int:
    return sum(len(span.tokens) for spans in kernel.batches for span in spans if not span.generated)


def ends(kernel: Kernel) -> list[int]:
    return [done.sequence for done in kernel.of(Done)]


# ---- memory


def test_sequences_wait_for_memory_in_their_order() -> None:
    kernel = Kernel(LLAMA, tokens=60)
    sizes = ((1, 5), (2, 20), (3, 20), (4, 2))
    kernel.run(*[admit(sequence, f"{sequence}" * 20, max_tokens=size) for sequence, size in sizes])
    assert ends(kernel) == [1, 2, 3, 4]
    assert max(bundle.kv.waiting for bundle in kernel.of(Bundle)) == 3
    assert kernel.memory.used == 0


def test_no_more_memory_is_used_than_there_is() -> None:
    kernel = Kernel(LLAMA, tokens=100)
    most = []
    kernel.before = lambda spans: most.append(kernel.memory.used + kernel.memory.cached)
    kernel.run(*[admit(sequence, f"{sequence % 4}" * (10 + sequence), max_tokens=9) for sequence in range(1, 21)])
    assert len(ends(kernel)) == 20
    assert max(most) <= kernel.memory.budget


def test_a_sequence_that_waits_for_memory_can_be_parked_and_cancelled() -> None:
    kernel = Kernel(LLAMA, tokens=40)
    kernel.during = {1: [Revoke(2), Cancel(3)]}
    kernel.run(*[admit(sequence, f"{sequence}" * 20) for sequence in (1, 2, 3)])
    assert kernel.of(Parked) == [Parked(2, held=False)]
    assert Done(3, "cancelled") in kernel.sent
    assert len(kernel.ids[1]) == 10
    assert len(kernel.run(Renew(2, 100)).ids[2]) == 10


def test_what_never_fits_in_memory_is_refused_with_both_numbers() -> None:
    kernel = Kernel(LLAMA, tokens=25).run(admit(1, "x" * 20))
    (failed,) = kernel.of(SequenceFailed)
    assert failed.error.code == "LimitExceeded"
    wanted, there = kernel.memory.size(30), kernel.memory.size(25)
    assert failed.error.data == {"limit": "kv_memory", "wanted": wanted, "maximum": there}
    assert str(wanted) in failed.error.message
    assert str(there) in failed.error.message


def test_a_sequence_without_a_slab_waits_for_one() -> None:
    kernel = Kernel(LLAMA, slabs=2).run(*[admit(sequence, f"{sequence}" * 20) for sequence in range(1, 6)])
    assert ends(kernel) == [1, 2, 3, 4, 5]
    assert max(len(spans) for spans in kernel.batches) == 2


def test_more_memory_lets_more_run_and_less_gives_up_what_is_kept() -> None:
    kernel = Kernel(LLAMA, tokens=40)
    kernel.during = {1: [Resize(kernel.memory.size(10_000))]}
    kernel.run(*[admit(sequence, f"{sequence}" * 20) for sequence in (1, 2, 3)])
    assert max(len(spans) for spans in kernel.batches) == 3
    assert kernel.memory.cached
    kernel.run(Resize(0))
    assert kernel.memory.cached == 0


def test_who_can_run_nothing_for_want_of_memory_says_so_and_takes_it_back() -> None:
    """The kernel must make room: only the kernel decides which sequence is parked and may be swapped out."""
    kernel = Kernel(LLAMA, tokens=60)
    kernel.during = {2: [Revoke(1), admit(2, "2" * 20, max_tokens=20)]}
    kernel.run(admit(1, "1" * 20, max_tokens=20))
    assert [(bundle.steps, bundle.kv.waiting) for bundle in kernel.of(Bundle)][-1] == (0, 1)
    said = len(kernel.sent)
    kernel.run(Revoke(2))
    assert not [message for message in kernel.sent[said:] if isinstance(message, Bundle)]
    kernel.run(Cancel(1), Renew(2, 1000))
    assert ends(kernel) == [1, 2]
    assert kernel.of(Bundle)[-1].kv.waiting == 0


def test_waiting_for_memory_counts_as_no_use_of_what_is_kept() -> None:
    kernel = Kernel(LLAMA, tokens=200)
    beginning = "the beginning of all of them, "
    kernel.run(call(1, beginning))
    node = next(iter(kernel.allocator.cache._root.children.values()))
    kernel.run(call(2, "z", max_tokens=100), call(3, beginning + "and more", max_tokens=60))
    assert kernel.of(Bundle)[-1].kv.waiting == 0
    assert len(kernel.batches) > 160  # the third waited for the second
    assert node.uses == 3  # inserted, used by the third request, and extended by it


# ---- prefixes on disk


def test_what_lies_on_disk_is_read_and_not_computed(tmp_path: Path) -> None:
    beginning = "the beginning of all that the first process says, "
    alone_said = alone(call(3, beginning + "and more"))
    kernel = Kernel(LLAMA, tokens=120, disk=tmp_path)
    kernel.run(call(1, beginning, process=1), call(2, "z" * 80, process=2, max_tokens=30))
    assert kernel.allocator.cache.disk_cache.used
    before = prompt_rows(kernel)
    kernel.run(call(3, beginning + "and more", process=1))
    assert kernel.ids[3] == alone_said
    assert prompt_rows(kernel) - before == len("and more")
    assert kernel.of(Bundle)[-1].kv.reread == len(beginning)
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_that_memory_was_too_short_to_keep_beside_its_call_is_kept_after_it() -> None:
    beginning = "the beginning of all that the first process says, "
    kernel = Kernel(LLAMA, tokens=len(beginning) + 2 * PAGE)
    kernel.run(call(1, beginning, process=1))
    before = prompt_rows(kernel)
    kernel.run(call(2, beginning + "and", process=1))
    assert prompt_rows(kernel) - before == len("and")
    assert kernel.ids[2] == alone(call(2, beginning + "and"))
    assert kernel.memory.used == 0


def test_what_lies_on_disk_is_computed_if_what_living_processes_share_leaves_no_room_for_it(tmp_path: Path) -> None:
    beginning, shared = "what the first says, " * 3, "what all the others begin with, " * 3
    kernel = Kernel(LLAMA, tokens=len(shared) + 3 * PAGE, disk=tmp_path)
    kernel.run(call(1, beginning, process=1))
    kernel.run(call(2, shared, process=2), call(3, shared, process=3))
    assert kernel.allocator.cache.disk_cache.used
    kernel.run(call(4, beginning + "more", process=1))
    assert kernel.ids[4] == alone(call(4, beginning + "more"))


def test_several_that_want_the_same_from_disk_wait_for_one_reading(tmp_path: Path) -> None:
    beginning = "the beginning of all that the first process says, "
    kernel = Kernel(LLAMA, tokens=240, disk=tmp_path)
    kernel.run(call(1, beginning, process=1), call(2, "z" * 80, process=2, max_tokens=130))
    kernel.run(*[call(sequence, beginning + f"{sequence}", process=1) for sequence in (3, 4, 5)])
    assert kernel.of(Bundle)[-1].kv.reread == len(beginning)
    assert [kernel.ids[sequence] for sequence in (3, 4, 5)] == [
        alone(call(sequence, beginning + f"{sequence}")) for sequence in (3, 4, 5)
    ]


def test_what_cannot_be_read_from_disk_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beginning = "the beginning of all that the first process says, "
    kernel = Kernel(LLAMA, tokens=120, disk=tmp_path)
    kernel.run(call(1, beginning, process=1), call(2, "z" * 80, process=2, max_tokens=30))

    def broken(*_: Any) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Segment, "copy_to", broken)
    kernel.run(call(3, beginning + "and more", process=1))
    assert kernel.ids[3] == alone(call(3, beginning + "and more"))
    assert kernel.of(Bundle)[-1].kv.reread == 0
    assert not kernel.of(SequenceFailed)


# ---- quotas


def test_what_never_fits_in_a_quota_is_refused_by_its_name() -> None:
    kernel = Kernel(LLAMA, quota=20).run(admit(1, "x" * 20), admit(2, "x" * 10))
    (failed,) = kernel.of(SequenceFailed)
    assert (failed.sequence, failed.error.code, failed.error.data["limit"]) == (1, "LimitExceeded", "kv_quota")
    assert ends(kernel) == [2]


def test_a_process_at_its_quota_holds_up_its_own_calls_alone() -> None:
    kernel = Kernel(LLAMA, quota=60)
    own = [call(sequence, f"{sequence}" * 30, process=1, max_tokens=20) for sequence in (1, 2, 3)]
    kernel.run(*own, call(4, "4" * 30, process=2), call(5, "5" * 30, process=3))
    assert [len({span.slab for span in spans}) for spans in kernel.batches[:4]] == [3, 3, 3, 3]
    assert ends(kernel) == [4, 5, 1, 2, 3]


def test_what_others_computed_does_not_count_to_a_quota() -> None:
    kernel = Kernel(LLAMA, quota=60)
    kernel.run(call(1, "x" * 40, process=1))
    kernel.run(*[call(sequence, "x" * 40 + f"{sequence}", process=2) for sequence in range(2, 10)])
    assert max(len(spans) for spans in kernel.batches) == 8


# ---- prefixes that other requests compute


def test_prompts_that_arrive_at_once_compute_what_they_share_once() -> None:
    system = "".join(chr(32 + place * 7 % 90) for place in range(300))
    calls = [call(number, f"{system}{chr(32 + number)} comes first", process=number) for number in range(1, 65)]
    kernel = Kernel(LONG, slabs=80, tokens=100_000).run(*calls)
    assert len(ends(kernel)) == 64
    ideal = 300 + sum(len(message.prompt) - 300 for message in calls)
    assert ideal <= prompt_rows(kernel) <= 1.05 * ideal
    for number in (1, 2, 37, 64):
        assert kernel.ids[number] == alone(calls[number - 1], LONG)


def test_a_prompt_that_came_before_is_not_computed_again_but_for_its_last_token() -> None:
    kernel = Kernel(LLAMA).run(call(1, "a prompt that comes twice"))
    rows = prompt_rows(kernel)
    kernel.run(call(2, "a prompt that comes twice"), call(3, "a prompt that comes twice, and goes on"))
    assert prompt_rows(kernel) - rows == 1 + len(", and goes on")
    assert kernel.ids[2] == kernel.ids[1]
    last = kernel.of(Bundle)[-1].kv
    assert (last.asked, last.hit) == (25 + 25 + 38, 24 + 25)


def test_one_that_waits_for_what_another_computes_holds_up_nobody() -> None:
    kernel = Kernel(LLAMA, most=32)
    long = "".join(chr(32 + place * 7 % 90) for place in range(200))
    kernel.run(call(1, long + "one"), call(2, long + "two"), call(3, "a short one"))
    assert ends(kernel)[0] == 3
    assert prompt_rows(kernel) <= 200 + 3 + 3 + len("a short one") + PAGE


@pytest.mark.parametrize("message", [Cancel(1), Revoke(1)])
def test_if_who_computes_a_beginning_leaves_another_goes_on(message: Cancel | Revoke) -> None:
    kernel = Kernel(LLAMA, most=32)
    kernel.during = {1: [message]}
    calls = [call(number, "x" * 100 + f"{number}") for number in (1, 2, 3)]
    kernel.run(*calls)
    assert ends(kernel)[-2:] == [2, 3]
    for number in (2, 3):
        assert kernel.ids[number] == alone(calls[number - 1])


def test_generated_tokens_are_computed_again_when_a_prompt_goes_on_from_them() -> None:
    """Generated tokens go through other kernels: only KV computed as a prompt may be used as a prompt."""
    kernel = Kernel(LLAMA).run(call(1, "a turn of a conversation", max_tokens=12))
    reply = kernel.text[1]
    rows = prompt_rows(kernel)
    turn = call(2, "a turn of a conversation" + reply + " and the next")
    kernel.run(turn)
    assert prompt_rows(kernel) - rows == len(reply) + len(" and the next")
    assert kernel.ids[2] == alone(turn)


def test_a_prompt_that_others_share_stays_while_their_processes_live() -> None:
    kernel = Kernel(LLAMA, tokens=150)
    shared = "what two of them have in common"
    kernel.run(call(1, shared + "!", process=1), call(2, shared + "?", process=2))
    fill = [call(number, f"{number}" * 60) for number in range(3, 9)]
    kernel.run(*fill)
    rows = prompt_rows(kernel)
    kernel.run(call(10, shared + "."))
    assert prompt_rows(kernel) - rows == 1
    kernel.run(Ended([1, 2]), *[call(20 + number, f"{number}" * 60) for number in range(3, 9)])
    rows = prompt_rows(kernel)
    kernel.run(call(30, shared + ";"))
    assert prompt_rows(kernel) - rows == len(shared) + 1


@pytest.mark.parametrize("begins", [0, 30])
def test_what_is_kept_never_makes_a_call_wait_for_ever(begins: int) -> None:
    """No request would free memory: two processes share the prefix, and the call itself may begin with it."""
    kernel = Kernel(LLAMA, tokens=300)
    shared = "".join(chr(32 + place * 7 % 90) for place in range(110))
    kernel.run(call(1, shared + "!", process=1), call(2, shared + "?", process=2))
    assert kernel.memory.cached >= kernel.memory.size(110)
    large = call(3, shared[:begins] + "z" * (140 - begins))
    kernel.run(Resize(kernel.memory.size(150)), large)
    assert kernel.ids[3] == alone(large)
    assert kernel.memory.used == 0


def test_a_score_and_a_generation_share_their_prompt() -> None:
    kernel = Kernel(LLAMA).run(call(1, "a prompt for two kinds of calls"))
    rows = prompt_rows(kernel)
    kernel.run(ScoreTexts(2, "a prompt for two kinds of calls", ["yes", "no"]))
    assert prompt_rows(kernel) - rows == 3 + 2
