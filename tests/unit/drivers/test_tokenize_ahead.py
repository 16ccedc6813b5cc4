"""Messages are tokenized on the thread that reads the link, in order; a failure ends only its own call."""

from __future__ import annotations

import socket
import threading
from functools import partial
from typing import Any

import pytest

pytest.importorskip("torch", reason="the driver runs torch models (extra `local`)")

from ipc.codec import ENCODER
from ipc.errors import InvalidPrompt
from ipc.frames import frame
from ipc.syscalls import Sampling
from kernel.drivers.child import KernelLink
from kernel.drivers.protocol import Admit, Cancel, Done, EmbedTexts, ScoreTexts, SequenceFailed
from kernel.drivers.transformers.tokenize_ahead import Tokenized, tokenized
from tests.support.tiny import Kernel, Letters, admit, ready

CODEC = Letters()


def test_the_texts_of_a_message_come_with_their_ids() -> None:
    prompt, score, embed = Admit(1, "ab", Sampling(), 1), ScoreTexts(2, "ab", ["c", "ba"]), EmbedTexts(3, ["a", "b"])
    assert tokenized(CODEC, prompt) == Tokenized(prompt, [[66, 67]])
    assert tokenized(CODEC, score) == Tokenized(score, [[66, 67], [68], [67, 66]])
    assert tokenized(CODEC, embed) == Tokenized(embed, [[66], [67]])


def test_what_was_tokenized_before_is_not_again() -> None:
    again = Admit(1, "", Sampling(), 1, prompt_ids=[7, 8])
    assert tokenized(CODEC, again) == Tokenized(again, [[7, 8]])


def test_a_message_without_texts_is_left_as_it_is() -> None:
    cancel = Cancel(1)
    assert tokenized(CODEC, cancel) is cancel


@pytest.mark.parametrize("message", [ScoreTexts(1, "a", []), ScoreTexts(1, "a", ["b", ""]), EmbedTexts(1, [])])
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


def test_the_thread_that_reads_makes_messages_ready_in_their_order() -> None:
    threads: list[str] = []

    class Watched(Letters):
        def encode(self, prompt: Any) -> list[int]:
            threads.append(threading.current_thread().name)
            return super().encode(prompt)

    ours, theirs = socket.socketpair()
    link = KernelLink(theirs)
    link.prepare = partial(tokenized, Watched())
    messages = [Admit(1, "ab", Sampling(), 1), Cancel(1), Admit(2, "b", Sampling(), 1)]
    ours.sendall(b"".join(frame(ENCODER.encode(message)) for message in messages))
    first, second, third = (link.inbox.get(timeout=30) for _ in messages)
    assert (first.ids, second, third.ids) == ([[66, 67]], Cancel(1), [[67]])
    assert threads == ["kernel-link", "kernel-link"]
    # The link ends its process when the kernel closes its socket: keep the sockets open until the test run ends.
    _OPEN.append((ours, link))


_OPEN: list[Any] = []
