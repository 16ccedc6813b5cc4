"""What a scheduling policy is: it is told who wants a slot and what came of it, and answers whom to run and preempt.

Asked by the slots of a model, which keep the books and speak to the driver. A policy reads no clock and does no I/O:
every call hands it the time in seconds, so that the same object runs in the daemon and in a simulation.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Job(Protocol):
    """What a policy may know of a sequence. `id` counts up in the order of coming; `priority` is from -20 to 20."""

    @property
    def id(self) -> int: ...

    @property
    def priority(self) -> int: ...

    @property
    def preemptible(self) -> bool:
        """Whether it can be taken off its slot and go on later."""


class Decision(NamedTuple):
    """Jobs that run from now on, and jobs that ran and wait again from now on. No job is among both."""

    run: list[Job]
    preempt: list[Job]


class Policy(Protocol):
    """One for each model. Of every job that arrived and has not left it knows whether it waits or runs.

    `waiting` is the number of those that wait.
    """

    @property
    def waiting(self) -> int: ...

    def arrive(self, job: Job, now: float) -> None:
        """`job` wants a slot from now on. Nothing if that is known."""

    def progress(self, job: Job, tokens: int, now: float) -> None:
        """`job` made so many tokens on its slot."""

    def reprioritise(self, job: Job, now: float) -> None:
        """The priority of `job` has changed."""

    def leave(self, job: Job, now: float) -> None:
        """`job` wants no slot any more, whether it had one or not: it is finished, or held back."""

    def decide(self, slots: int, now: float) -> Decision:
        """Whom to run on `slots` slots. Those who run already count, and stay unless they are preempted."""

    def line(self) -> list[Job]:
        """Those that wait, the next one first, as far as that is known now."""
