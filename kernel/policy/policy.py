"""What a scheduling policy is: it is told who wants a slot and what came of it, and answers whom to run and preempt.

Asked by the slots of a model, which keep the books and speak to the driver. A policy reads no clock and does no I/O:
every call hands it the time in seconds, so that the same object runs in the daemon and in a simulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from kernel.policy.group import SchedulingGroup


class Job(Protocol):
    """What a policy may know of a sequence. `id` counts up in the order of coming; `priority` is from -20 to 20."""

    @property
    def id(self) -> int: ...

    @property
    def priority(self) -> int: ...

    @property
    def preemptible(self) -> bool:
        """Whether it can be taken off its slot and go on later."""

    @property
    def group(self) -> SchedulingGroup:
        """What it is a call of."""

    @property
    def prompt(self) -> int:
        """Tokens of its prompt that are to be read before it makes the first one; 0 if that is not known."""

    @property
    def limit(self) -> int:
        """Tokens that it may make at most from now on; 0 if that is not known."""

    @property
    def critical_path(self) -> float:
        """Service, in tokens made, along the longest chain of calls that led to it; the same as long as it lives."""

    @property
    def switch_cost(self) -> float:
        """The cost to preempt it and bring it back, in tokens that could be made meanwhile.

        0 if it stays in memory.
        """


class Grant(NamedTuple):
    """A slot for `job`, for so many tokens; 0: until the policy says otherwise.

    When they are made the policy decides again. A job goes on beyond its grant if the policy leaves it its slot.
    """

    job: Job
    tokens: int


class Decision(NamedTuple):
    """Which jobs run, wait or end from now on. No job is in two of these.

    `run`: those that run from now on, and those that ran already and have a new grant. `preempt`: those that ran and
    wait from now on. `shed`: those that waited and end because it is too late for them; the policy has forgotten them.
    """

    run: Sequence[Grant] = ()
    preempt: Sequence[Job] = ()
    shed: Sequence[Job] = ()


class Policy(Protocol):
    """One for each model. Of every job that arrived and has not left it knows whether it waits or runs.

    `kind` is its name in the settings, `waiting` the number of those that wait. `reason` explains what it last changed
    of itself, if it is a policy that does.
    """

    @property
    def kind(self) -> str: ...

    @property
    def reason(self) -> str: ...

    @property
    def waiting(self) -> int: ...

    def arrive(self, job: Job, now: float) -> None:
        """`job` wants a slot from now on. Nothing if that is known."""

    def adopt(self, job: Job, now: float) -> None:
        """`job` has a slot already, which another policy gave it. Nothing if the job is known."""

    def charge_prompt(self, job: Job, tokens: int, now: float) -> None:
        """The prompt of `job`, which has a slot, turned out to have so many tokens, which are read now."""

    def charge_tokens(self, job: Job, tokens: int, now: float) -> None:
        """`job` made so many tokens on its slot."""

    def reprioritise(self, job: Job, now: float) -> None:
        """The priority of `job` has changed."""

    def leave(self, job: Job, now: float) -> None:
        """`job` wants no slot any more, whether it had one or not: it is finished, or held back."""

    def decide(self, slots: int, now: float) -> Decision:
        """Whom to run on `slots` slots. Those who run already count, and stay unless they are preempted."""

    def line(self) -> list[Job]:
        """Those that wait, the next one first, as far as that is known now."""

    def running(self) -> list[Job]:
        """Those that have a slot, in the order in which they got it."""

    def since(self, job: Job) -> float:
        """The time from which `job`, which is known, waits or runs."""


def hand_over(old: Policy, new: Policy, now: float) -> None:
    """Give all jobs of `old` to `new`, which has none yet: who runs goes on, who waits has waited as long."""
    for job in old.running():
        new.adopt(job, now)
    for job in sorted(old.line(), key=lambda job: job.id):
        new.arrive(job, old.since(job))
