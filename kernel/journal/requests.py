"""The operations that the loop asks of the journal's thread, each with its outcome.

The journal makes them. An operation is answered on the loop, with its outcome or an error. A `Finish` or `Persist` that
the disk refused is answered twice: first with the error, and with None once it is on disk. All others are answered
once. `NotStorable` is final: the request contains a value that cannot be stored. An operation never runs itself: the
writer does that.

`outcome` belongs to the journal's thread, which may run an operation again while an earlier answer is on its way to the
loop. So an answer carries its outcome by value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernel.journal.changes import Change
from kernel.journal.records import AcceptedTask, TaskEnd

if TYPE_CHECKING:
    from kernel.journal.store import Store

Answer = Callable[[Any], None]
Answered = tuple["Operation", Any]  # an operation and its outcome, on their way to the loop


class Operation:
    """A request. `answer` is called on the loop with the outcome, which is the result or an error."""

    __slots__ = ("answer", "outcome")

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.outcome: Any = None


class Accept(Operation):
    """Persist a task. Answered with the task, the `TaskRow` of an earlier task with the same key, or an error."""

    __slots__ = ("task",)

    def __init__(self, task: AcceptedTask, answer: Answer) -> None:
        self.task = task
        self.answer = answer
        self.outcome: Any = None


class Finish(Operation):
    """Persist the end of a task. Answered with None."""

    __slots__ = ("end",)

    def __init__(self, end: TaskEnd, answer: Answer) -> None:
        super().__init__(answer)
        self.end = end


class Copy(Operation):
    """Copy the journal to a new file at `path`. Answered with the size of the copy in bytes."""

    __slots__ = ("path",)

    def __init__(self, path: Path, answer: Answer) -> None:
        super().__init__(answer)
        self.path = path


class Persist(Operation):
    """Apply changes, all or none. Answered like a `Finish`."""

    __slots__ = ("changes",)

    def __init__(self, changes: Sequence[Change], answer: Answer) -> None:
        super().__init__(answer)
        self.changes = changes


class Read(Operation):
    """Run `query` after all earlier requests. Answered with the result of the query."""

    __slots__ = ("query",)

    def __init__(self, query: Callable[[Store], Any], answer: Answer) -> None:
        super().__init__(answer)
        self.query = query
