"""Texts are tokenized in threads of their own: no other call and no message waits, and a failure ends only its call."""

from __future__ import annotations

import queue
import socket
import threading
from typing import Any

import pytest

pytest.importorskip("torch", reason="the driver runs torch models (extra `local`)")

from ipc.codec import ENCODER
from ipc.errors import InvalidPrompt
from ipc.frames import frame
from ipc.syscalls import Sampling
from kernel.drivers.child import KernelLink
from kernel.drivers.protocol import (
    Admit,
    Admitted,
    Cancel,
    Done,
    EmbedQuery,
    Parked,
    Renew,
    Revoke,
    ScoreQuery,
    SequenceFailed,
    Stop,
    SwapOut,
    SwappedOut,
    Working,
)
from kernel.drivers.transformers.engine import HEARTBEAT
from kernel.drivers.transformers.tokenize_ahead import (
    LONG,
    MOST_HANGING,
    PATIENCE,
    SLOWEST,
    TokenizeAhead,
    Tokenized,
    tokenized,
)
from tests.support.tiny import Kernel, Letters, admit, ready

CODEC = Letters()
GUARD = 60.0  # seconds


def test_the_texts_of_a_message_come_with_their_ids() -> None:
    prompt, score, embed = Admit(1, "ab", Sampling(), 1), ScoreQuery(2, "ab", ["c", "ba"]), EmbedQuery(3, ["a", "b"])
    assert tokenized(CODEC, prompt) == Tokenized(prompt, [[66, 67]])
    assert tokenized(CODEC, score) == Tokenized(score, [[66, 67], [68], [67, 66]])
    assert tokenized(CODEC, embed) == Tokenized(embed, [[66], [67]])


def test_what_was_tokenized_before_is_not_again() -> None:
    again = Admit(1, "", Sampling(), 1, prompt_ids=[7, 8])
    assert tokenized(CODEC, again) == Tokenized(again, [[7, 8]])


def test_a_message_without_texts_is_left_as_it_is() -> None:
    cancel = Cancel(1)
    assert tokenized(CODEC, cancel) is cancel


@pytest.mark.parametrize("message", [ScoreQuery(1, "a", []), ScoreQuery(1, "a", ["b", ""]), EmbedQuery(1, [])])
def test_what_lacks_texts_is_an_error_of_this_call(message: Any) -> None:
    assert isinstance(tokenized(CODEC, message).error, InvalidPrompt)


def test_a_tokenizer_that_fails_ends_this_call_and_no_other() -> None:
    class Failing(Letters):
        def encode(self, prompt: Any) -> list[int]:
            if prompt == "bad":
                raise KeyError("no such letter")
            return super().encode(prompt)

    kernel = Kernel(ready("Llama"), Failing()).run(admit(1, "good"), admit(2, "bad"), admit(3, "fine"))
    (failed,) = kernel.of(SequenceFailed)
    assert (failed.sequence, "no such letter" in failed.error.message) == (2, True)
    assert {done.sequence for done in kernel.of(Done)} == {1, 3}


class Held(Letters):
    """Tokenizes a long text, or one that begins with "l", only once it may. `threads`: the threads that tokenized."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()
        self.begun = threading.Event()
        self.threads: list[str] = []

    def encode(self, prompt: Any) -> list[int]:
        self.threads.append(threading.current_thread().name)
        if prompt[0] == "l" or len(prompt) > LONG:
            self.begun.set()
            assert self.free.wait(GUARD)
        return super().encode(prompt)


def linked(codec: Any) -> tuple[socket.socket, KernelLink]:
    ours, theirs = socket.socketpair()
    link = KernelLink(theirs)
    link.prepare = TokenizeAhead(codec, link.inbox).prepare
    # The link ends its process when the kernel closes its socket: keep the sockets open until the test run ends.
    _OPEN.append((ours, link))
    return ours, link


def send(end: socket.socket, *messages: Any) -> None:
    end.sendall(b"".join(frame(ENCODER.encode(message)) for message in messages))


def test_the_thread_that_reads_never_tokenizes_so_all_messages_behind_a_long_prompt_are_read() -> None:
    codec = Held()
    end, link = linked(codec)
    messages = [Admit(1, "la", Sampling(), 1), Cancel(1), Revoke(2), Admit(3, "x", Sampling(), 1, [7]), Stop()]
    send(end, *messages)
    job, *others = [link.inbox.get(timeout=GUARD) for _ in messages]
    assert (job.message, job.result) == (messages[0], None)
    assert others == [Cancel(1), Revoke(2), Tokenized(messages[3], [[7]]), Stop()]
    codec.free.set()
    assert link.inbox.get(timeout=GUARD).result.ids == [[77, 66]]
    assert "kernel-link" not in codec.threads


def test_a_short_text_does_not_wait_for_a_long_one() -> None:
    codec = Held()
    end, link = linked(codec)
    send(end, Admit(1, "a" * (LONG + 1), Sampling(), 1))
    assert codec.begun.wait(GUARD)
    send(end, *(Admit(number, letter, Sampling(), 1) for number, letter in enumerate("bcd", 2)))
    results: list[int] = []
    while len(results) < 3:
        job = link.inbox.get(timeout=GUARD)
        if job.result is not None and job.message.sequence not in results:
            results.append(job.message.sequence)
    assert results == [2, 3, 4]
    codec.free.set()


def test_a_withdrawn_text_is_never_tokenized_and_not_stored() -> None:
    codec = Held()
    ahead = TokenizeAhead(codec, queue.SimpleQueue())
    ahead.prepare(Admit(1, "la", Sampling(), 1))
    assert codec.begun.wait(GUARD)
    jobs = [ahead.prepare(Admit(number, "cd", Sampling(), 1)) for number in range(2, 1000)]
    for job in jobs:
        ahead.withdraw(job)
    assert not ahead._short._waiting
    codec.free.set()
    assert codec.threads == ["tokenize"]


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_tokenizer_that_never_returns_fails_its_call_beside_a_neighbour_and_later_calls_run(cancelled: bool) -> None:
    codec, now = Held(), [0.0]
    inbox: Any = queue.SimpleQueue()
    kernel, ahead = _serving(codec, lambda: now[0], inbox)
    job = ahead.prepare(Admit(2, "long", Sampling(), 1))
    assert codec.begun.wait(GUARD)
    behind = ahead.prepare(Admit(3, "s", Sampling(max_tokens=2), 9))
    kernel.run(admit(1, max_tokens=9), job, *([Cancel(2)] * cancelled))
    assert not kernel.of(SequenceFailed)
    now[0] = 2 * PATIENCE
    kernel.run(admit(4, max_tokens=9), behind)
    assert inbox.get(timeout=GUARD) is job
    kernel.run(job)
    failed = [(one.sequence, "tokenizer hangs" in one.error.message) for one in kernel.of(SequenceFailed)]
    assert failed == ([] if cancelled else [(2, True)])
    assert inbox.get(timeout=GUARD) is behind
    kernel.run(behind)
    assert len(kernel.ids[1]) == len(kernel.ids[4]) == 9
    assert len(kernel.ids[3]) == 2
    assert job.settled
    codec.free.set()


def test_a_driver_whose_tokenizer_hangs_again_and_again_exits() -> None:
    codec, now = Held(), [0.0]
    inbox: Any = queue.SimpleQueue()
    ahead = TokenizeAhead(codec, inbox, lambda: now[0])
    for hanging in range(MOST_HANGING + 1):
        job = ahead.prepare(Admit(hanging, "long", Sampling(), 1))
        assert codec.begun.wait(GUARD)
        codec.begun.clear()
        now[0] += PATIENCE
        ahead.fail_hanging()
        assert job.result is None
        now[0] += 1
        if hanging < MOST_HANGING:
            ahead.fail_hanging()
            assert inbox.get(timeout=GUARD) is job
    with pytest.raises(SystemExit, match="the tokenizer hangs in 4 threads"):
        ahead.fail_hanging()
    codec.free.set()


def test_the_time_that_a_text_may_take_grows_with_its_length() -> None:
    codec, now = Held(), [0.0]
    inbox: Any = queue.SimpleQueue()
    ahead = TokenizeAhead(codec, inbox, lambda: now[0])
    assert not ahead.works()
    job = ahead.prepare(Admit(1, "a" * 2 * LONG, Sampling(), 1))
    assert codec.begun.wait(GUARD)
    now[0] = PATIENCE + 2 * LONG / SLOWEST
    ahead.fail_hanging()
    assert ahead.works()
    assert job.result is None
    now[0] += 1
    ahead.fail_hanging()
    assert not ahead.works()
    assert inbox.get(timeout=GUARD).result.error is not None
    codec.free.set()


def test_a_neighbour_and_a_short_call_run_while_a_long_prompt_is_tokenized() -> None:
    codec = Held()
    kernel, ahead = _serving(codec)
    kernel.during = {
        2: [ahead.prepare(Admit(2, "long", Sampling(max_tokens=3), 100))],
        4: [admit(3, "s", max_tokens=2)],
        8: [Cancel(2)],
    }
    kernel.run(admit(1, max_tokens=40))
    assert (len(kernel.ids[1]), len(kernel.ids[3]), 2 in kernel.ids) == (40, 2, False)
    assert Done(2, "cancelled") in kernel.sent
    codec.free.set()


@pytest.mark.parametrize("lease", [0, 5])
def test_leases_that_change_while_a_prompt_is_tokenized_count_from_its_first_step(lease: int) -> None:
    codec = Held()
    kernel, ahead = _serving(codec)
    job = ahead.prepare(Admit(2, "long", Sampling(max_tokens=9), 100))
    kernel.during = {3: [Revoke(2), Revoke(2), *([Renew(2, lease)] * (lease > 0))], 5: [SwapOut(2, "nowhere")]}
    kernel.run(job, admit(1, max_tokens=10))
    (refused,) = kernel.of(SwappedOut)
    assert "tokenized" in refused.error.message
    assert kernel.of(Parked) == [Parked(2, held=False)]
    codec.free.set()
    while job.result is None:
        assert ahead._short._changed.acquire(timeout=GUARD)
        ahead._short._changed.release()
    kernel.run(job)
    assert len(kernel.ids.get(2, [])) == lease
    assert len(kernel.of(Admitted)) == 2


def test_the_result_of_a_call_that_was_cancelled_is_dropped() -> None:
    codec = Held()
    kernel, ahead = _serving(codec)
    job = ahead.prepare(Admit(2, "long", Sampling(), 100))
    kernel.run(job, Cancel(2))
    assert kernel.sent == [Done(2, "cancelled")]
    job.result = Tokenized(job.message, [[66]])
    assert kernel.run(job, Cancel(2)).sent == [Done(2, "cancelled")]
    codec.free.set()


def test_an_idle_driver_that_tokenizes_reports_that_it_is_alive_until_the_tokenizer_must_be_hanging() -> None:
    """A `Working` for each heartbeat, until the text has taken too long."""
    codec, now = Held(), [0.0]

    class Inbox:
        """Passes the time, and nothing else."""

        def get(self, block: bool, timeout: float | None = None) -> Any:
            if not block:
                raise queue.Empty
            if timeout is None:
                return Stop()
            now[0] += timeout
            raise queue.Empty

    kernel, ahead = _serving(codec, lambda: now[0])
    job = ahead.prepare(Admit(1, "long", Sampling(), 1))
    assert codec.begun.wait(GUARD)
    kernel.run(job)
    kernel.engine._inbox = Inbox()  # type: ignore[assignment]
    kernel.engine.run()
    assert set(map(type, kernel.sent)) == {Working}
    assert len(kernel.sent) == pytest.approx(PATIENCE / HEARTBEAT, abs=2)
    codec.free.set()


def _serving(codec: Any, clock: Any = lambda: 0.0, inbox: Any = None) -> tuple[Kernel, TokenizeAhead]:
    kernel = Kernel(ready("Llama"), codec)
    ahead = TokenizeAhead(codec, inbox or queue.SimpleQueue(), clock)
    kernel.calls._tokenizer = ahead
    return kernel, ahead


_OPEN: list[Any] = []
