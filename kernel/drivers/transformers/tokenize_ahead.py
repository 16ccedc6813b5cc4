"""Tokenizes the texts in the kernel's messages, in threads of its own, while the link is read and steps run.

The link passes each message through `TokenizeAhead.prepare`, which takes no longer for a long text than for a short
one. A message with texts becomes a `TokenizeJob`, which `call_lifecycle` gets twice: when it arrives, and when its
result is there. In between, it takes part in nothing; so its `Cancel`, and all other messages, take effect at once.
This module never decides whether a text may run.
"""

from __future__ import annotations

import math
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from ipc.errors import DriverFailed, InvalidPrompt
from ipc.syscalls import ChatMessage
from kernel.drivers.protocol import Admit, EmbedQuery, ScoreQuery
from kernel.drivers.transformers.sequence import TextCodec

LONG = 20_000  # characters; longer messages have a thread of their own, so that short ones never wait for them
# A thread that takes longer for a message than this is assumed to hang. Tokenizers do hundreds of thousands of
# characters in a second.
PATIENCE = 30.0  # seconds
SLOWEST = 10_000  # further characters in a second
MOST_HANGING = 3  # threads; with one more, the driver exits


class Tokenized(NamedTuple):
    """A message with the ids of its texts, or with the `error` that ends its call.

    The texts are the prompt of an `Admit`, the prompt and continuations of a `ScoreQuery`, or the texts of an
    `EmbedQuery`.
    """

    message: Admit | ScoreQuery | EmbedQuery
    ids: list[list[int]]
    error: Exception | None = None


class TokenizeJob:
    """A `message` of `size` characters. `result` is None while it waits or is being tokenized.

    `settled` belongs to `call_lifecycle`: the result was used, or is not wanted any more.
    """

    __slots__ = ("message", "result", "settled", "size")

    def __init__(self, message: Admit | ScoreQuery | EmbedQuery, size: int) -> None:
        self.message = message
        self.size = size
        self.result: Tokenized | None = None
        self.settled = False


class TokenizeAhead:
    """Tokenizes with `codec` and puts finished jobs into `inbox`.

    It holds no more messages than the kernel has calls in the driver: a call that ends early is withdrawn.
    """

    def __init__(
        self, codec: TextCodec, inbox: queue.SimpleQueue[Any], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._short, self._long = (_Worker(name, codec, inbox, clock) for name in ("tokenize", "tokenize-long"))
        self._hanging = 0  # threads

    def prepare(self, message: Any) -> Any:
        """Start to tokenize the texts of `message`, and return the job. A message without new texts is returned."""
        if not isinstance(message, Admit | ScoreQuery | EmbedQuery):
            return message
        if isinstance(message, Admit) and message.prompt_ids is not None:
            return Tokenized(message, [message.prompt_ids])
        job = TokenizeJob(message, sum(map(len, _texts(message))))
        self._worker(job).add(job)
        return job

    def withdraw(self, job: TokenizeJob) -> None:
        """Nobody wants the result of `job` any more. If its thread is at it, the thread finishes it."""
        job.settled = True
        self._worker(job).withdraw(job)

    def works(self) -> bool:
        """Whether a thread is at work."""
        return self._short.works() or self._long.works()

    def fail_hanging(self) -> None:
        """Fail the calls whose texts take so long that their threads must be hanging, and replace these threads.

        Other calls continue. If too many threads hang, exit the process: the calls continue in another driver.
        """
        if not (self._short.hangs or self._long.hangs):
            return
        self._hanging += self._short.replace_hanging() + self._long.replace_hanging()
        if self._hanging > MOST_HANGING:
            sys.exit(f"the tokenizer hangs in {self._hanging} threads; the driver exits")

    def _worker(self, job: TokenizeJob) -> _Worker:
        return self._long if job.size > LONG else self._short


class _Worker:
    """One thread, and the jobs that wait for it in the order of their arrival."""

    def __init__(self, name: str, codec: TextCodec, inbox: queue.SimpleQueue[Any], clock: Callable[[], float]) -> None:
        self._name = name
        self._codec = codec
        self._inbox = inbox
        self._clock = clock
        self._waiting: deque[TokenizeJob] = deque()
        self._changed = threading.Condition()
        self._job: TokenizeJob | None = None  # at which the thread is
        self._late = math.inf  # when it will have taken too long for this job
        self._start_thread()

    def add(self, job: TokenizeJob) -> None:
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()

    def withdraw(self, job: TokenizeJob) -> None:
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)

    def works(self) -> bool:
        """Whether the thread has a job."""
        with self._changed:
            return self._job is not None or bool(self._waiting)

    @property
    def hangs(self) -> bool:
        """Whether the thread has had its job for too long."""
        return self._late < self._clock()

    def replace_hanging(self) -> bool:
        """If the thread hangs, fail its job, and give the jobs that wait to a new thread. Returns whether it hangs."""
        with self._changed:
            job = self._job
            if job is None or not self.hangs:
                return False
            self._job, self._late = None, math.inf
        error = DriverFailed(f"the tokenizer hangs: it took more than {_patience(job):.0f} s for {job.size} characters")
        job.result = Tokenized(job.message, [], error)
        self._inbox.put(job)
        self._start_thread()
        return True

    def _start_thread(self) -> None:
        threading.Thread(target=self._run, name=self._name, daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
                job = self._job = self._waiting.popleft()
                self._late = self._clock() + _patience(job)
            result = tokenized(self._codec, job.message)
            with self._changed:
                if self._job is not job:
                    return  # another thread has taken the place of this one
                self._job, self._late = None, math.inf
            job.result = result
            self._inbox.put(job)
            del job, result  # they may be large, and the next one may be long in coming


def _patience(job: TokenizeJob) -> float:
    return PATIENCE + job.size / SLOWEST


def tokenized(codec: TextCodec, message: Any) -> Any:
    """`message` itself, or `Tokenized` if it has texts. Never raises: an error goes into `Tokenized.error`."""
    if not isinstance(message, Admit | ScoreQuery | EmbedQuery):
        return message
    try:
        return Tokenized(message, _ids(codec, message))
    except Exception as error:
        return Tokenized(message, [], error)


def _ids(codec: TextCodec, message: Admit | ScoreQuery | EmbedQuery) -> list[list[int]]:
    match message:
        case Admit():
            return [codec.encode(message.prompt) if message.prompt_ids is None else message.prompt_ids]
        case ScoreQuery():
            ids = [codec.encode(message.prompt), *map(codec.encode_more, message.continuations)]
            if len(ids) == 1 or not all(ids):
                raise InvalidPrompt("score needs one or more continuations, none of them empty")
            return ids
        case EmbedQuery():
            if not message.texts:
                raise InvalidPrompt("embed needs one or more texts")
            return list(map(codec.encode_document, message.texts))


def _texts(message: Admit | ScoreQuery | EmbedQuery) -> Iterable[str]:
    if isinstance(message, EmbedQuery):
        return message.texts
    more = message.continuations if isinstance(message, ScoreQuery) else []
    prompt: list[ChatMessage] | str = message.prompt
    return [prompt, *more] if isinstance(prompt, str) else [*(turn.content for turn in prompt), *more]
