"""A query: a sequence that makes no tokens and gets one answer: scores of continuations, or vectors of texts.

Created for the system calls `ScoreText` and `EmbedTexts`. It has no lease and is never preempted or swapped out; if its
driver dies, the query is sent again.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ipc.errors import DriverFailed
from kernel.core.process import Process, Thread
from kernel.drivers import protocol
from kernel.models.sequence import Sequence

Question = protocol.ScoreQuery | protocol.EmbedQuery
Answer = protocol.Scored | protocol.Embedded


class Query(Sequence):
    """One request to a driver. `answer` is set once the query has finished without error."""

    __slots__ = ("_question", "answer")
    preemptible = False

    def __init__(
        self,
        sequence_id: int,
        process: Process,
        thread: Thread,
        model: str,
        make_question: Callable[[int, int], Question],
    ) -> None:
        """`make_question` makes the message to the driver from the sequence id and the pid."""
        super().__init__(sequence_id, process, thread, model)
        process.generations += 1
        self._question = make_question(sequence_id, process.pid)
        self.answer: Answer | None = None

    def admission(self) -> Question:
        return self._question

    def accept(self, answer: Answer) -> int:
        """Check and store the answer. Returns the tokens that it cost. Raises `DriverFailed` if it is malformed."""
        question = self._question
        if isinstance(question, protocol.ScoreQuery) and isinstance(answer, protocol.Scored):
            fits = len(question.continuations) == len(answer.logprobs) == len(answer.tokens)
            numbers, tokens = answer.logprobs, answer.prompt_tokens + sum(answer.tokens)
        elif isinstance(question, protocol.EmbedQuery) and isinstance(answer, protocol.Embedded):
            fits = len(question.texts) == len(answer.vectors)
            # The sum is NaN if any of its terms is.
            numbers, tokens = [sum(vector) for vector in answer.vectors], answer.prompt_tokens
        else:
            raise DriverFailed(f"model {self.model} answered {type(question).__name__} with {type(answer).__name__}")
        if not fits:
            raise DriverFailed(f"model {self.model} answered for another number of texts than the call contains")
        if any(map(math.isnan, numbers)):
            raise DriverFailed(f"model {self.model} answered with a number that is NaN")
        self.answer = answer
        return tokens
