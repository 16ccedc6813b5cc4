"""What the loop asks of the journal's thread, and how it is told.

Made by the journal. Each is answered on the loop, once, with its outcome or an error; a `Finish` or
`Persist` that could not be written yet is answered once more when it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernel.journal.changes import Change
from kernel.journal.records import Accepted, TaskEnd

if TYPE_CHECKING:
    from kernel.journal.store import Store

Answer = Callable[[Any], None]


class Operation:
    """`answer` is called on the loop with the outcome, or with the error that stands for it."""

    __slots__ = ("answer", "outcome")

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.outcome: Any = None


class Accept(Operation):
    """Persist a task. Answered with it, or with the `TaskRow` one of the same key."""

    __slots__ = ("task",)

    def __init__(self, task: Accepted, answer: Answer) -> None:
        self.task = task
        self.answer = answer
        self.outcome: Any = None


class Finish(Operation):
    """Persist how a task ended. Answered with None."""

    __slots__ = ("end",)

    def __init__(self, end: TaskEnd, answer: Answer) -> None:
        super().__init__(answer)
        self.end = end


class Copy(Operation):
    """Copy the journal to a new file at `path`. Answered with its size in bytes."""

    __slots__ = ("path",)

    def __init__(self, path: Path, answer: Answer) -> None:
        super().__init__(answer)
        self.path = path


class Persist(Operation):
    """Make changes, all or none. Answered like a `Finish`."""

    __slots__ = ("changes",)

    def __init__(self, changes: Sequence[Change], answer: Answer) -> None:
        super().__init__(answer)
        self.changes = changes


class Read(Operation):
    """Answered with what `query` finds, after all that was asked for earlier."""

    __slots__ = ("query",)

    def __init__(self, query: Callable[[Store], Any], answer: Answer) -> None:
        super().__init__(answer)
        self.query = query
