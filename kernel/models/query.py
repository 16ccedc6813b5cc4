"""A query: a sequence that makes no text, but is answered at once: scores of continuations, vectors of texts.

Made for the system calls `ScoreText` and `EmbedTexts`. It has no state worth keeping: once begun it runs to its end,
and one whose driver died is asked again.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ipc.errors import DriverFailed
from kernel.core.process import Process, Thread
from kernel.drivers import protocol
from kernel.models.sequence import Sequence

Question = protocol.Score | protocol.Embed
Answer = protocol.Scored | protocol.Embedded


class Query(Sequence):
    """A question to a driver. `answer` is there when it has finished without error."""

    __slots__ = ("_question", "answer")
    preemptible = False

    def __init__(
        self,
        sequence_id: int,
        process: Process,
        thread: Thread,
        model: str,
        question: Callable[[int, int], Question],
    ) -> None:
        """`question` makes the message, from the ids of the sequence and the process."""
        super().__init__(sequence_id, process, thread, model)
        process.generations += 1
        self._question = question(sequence_id, process.pid)
        self.answer: Answer | None = None

    def admission(self) -> Question:
        return self._question

    def take(self, answer: Answer) -> int:
        """Take the driver's answer; the tokens that it cost. Raises `DriverFailed` if it cannot be right."""
        question = self._question
        if isinstance(question, protocol.Score) and isinstance(answer, protocol.Scored):
            fits = len(question.continuations) == len(answer.logprobs) == len(answer.tokens)
            numbers, tokens = answer.logprobs, answer.prompt_tokens + sum(answer.tokens)
        elif isinstance(question, protocol.Embed) and isinstance(answer, protocol.Embedded):
            fits = len(question.texts) == len(answer.vectors)
            # A sum is not a number if any of its terms is not.
            numbers, tokens = [sum(vector) for vector in answer.vectors], answer.prompt_tokens
        else:
            raise DriverFailed(f"model {self.model} answered {type(question).__name__} with {type(answer).__name__}")
        if not fits:
            raise DriverFailed(f"model {self.model} answered for fewer or more texts than it was asked about")
        if any(map(math.isnan, numbers)):
            raise DriverFailed(f"model {self.model} answered numbers that are none (NaN)")
        self.answer = answer
        return tokens
