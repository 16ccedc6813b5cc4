"""The interface of a scheduling policy: it decides which jobs get or lose a slot of a model, and for how many tokens.

The lease table of a model calls a policy, keeps the slots and leases, and talks to the driver. A policy reads no clock
and does no I/O: each call passes it the time in seconds, so the same object runs in the daemon and in a simulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from kernel.policy.group import SchedulingGroup


class Job(Protocol):
    """A sequence as a policy sees it. Jobs get ascending ids in order of arrival. `priority` is from -20 to 20."""

    @property
    def id(self) -> int: ...

    @property
    def priority(self) -> int: ...

    @property
    def preemptible(self) -> bool:
        """Whether the job can be taken off its slot and continue later."""

    @property
    def group(self) -> SchedulingGroup:
        """The scheduling group of the process that made the call."""

    @property
    def prompt(self) -> int:
        """Tokens of the prompt that the driver must read before the first new token; 0 if unknown."""

    @property
    def limit(self) -> int:
        """The most tokens that the job may still make; 0 if unknown."""

    @property
    def critical_path(self) -> float:
        """Service, in tokens made, along the longest chain of calls that led to this call. It never changes."""

    @property
    def switch_cost(self) -> float:
        """The cost of preempting the job and bringing it back, in tokens that its slot could make in that time.

        0 if the KV of the job stays in memory.
        """


class Grant(NamedTuple):
    """A slot for `job`, for `tokens` tokens. With 0, the job keeps the slot until a later decision takes it away.

    When the job has made its tokens, the policy decides again: the job loses the slot, or keeps it with another grant.

    Three amounts of tokens are easily confused. A quantum is a setting of a policy. A grant is the number of tokens
    that the policy gives one job, usually a quantum. A lease is the number of tokens that the driver may make for a
    sequence before the lease table renews it: see `kernel.models.leases`.
    """

    job: Job
    tokens: int


class Decision(NamedTuple):
    """The changes to make now. No job is in two of the lists.

    `run`: waiting jobs that get a slot, and running jobs that get a new grant. `preempt`: running jobs that must wait.
    `shed`: waiting jobs that end with an error because they cannot meet their deadlines; the policy has already
    forgotten them.
    """

    run: Sequence[Grant] = ()
    preempt: Sequence[Job] = ()
    shed: Sequence[Job] = ()


class Outlook(NamedTuple):
    """How a waiting job will get a slot, for people.

    `rule` completes the sentence "the policy ...", with the numbers that decide. `yields`: the running job that must
    give up its slot for the waiting job first, if that is still the next one then; None if only the end of a job frees
    a slot. `tokens`: the tokens that `yields` may make before that.
    """

    rule: str
    yields: Job | None = None
    tokens: int = 0


class Policy(Protocol):
    """Schedules the slots of one model. It knows every job that arrived and has not left, waiting or running.

    `kind` is its name in the settings, `waiting` the number of waiting jobs. `reason` says what the policy last changed
    about itself, and why; it is empty for a policy that never changes itself.
    """

    @property
    def kind(self) -> str: ...

    @property
    def reason(self) -> str: ...

    @property
    def waiting(self) -> int: ...

    def arrive(self, job: Job, now: float) -> None:
        """Queue `job` for a slot. Does nothing if the job is known."""

    def adopt(self, job: Job, now: float) -> None:
        """Take over `job`, to which another policy gave a slot. Does nothing if the job is known."""

    def charge_prompt(self, job: Job, tokens: int, now: float) -> None:
        """The driver now reads the prompt of `job`, which has a slot; the prompt has `tokens` tokens."""

    def charge_tokens(self, job: Job, tokens: int, now: float) -> None:
        """`job` made `tokens` tokens on its slot."""

    def reprioritise(self, job: Job, now: float) -> None:
        """The priority of `job` has changed."""

    def leave(self, job: Job, now: float) -> None:
        """Forget `job`, waiting or running: it has finished or is blocked."""

    def decide(self, slots: int, now: float) -> Decision:
        """Choose the jobs that run on `slots` slots. Running jobs take up slots, and keep them unless preempted."""

    def queue(self) -> list[Job]:
        """The waiting jobs in the order in which they would run if nothing changed."""

    def running(self) -> list[Job]:
        """The running jobs, in the order in which they got their slots."""

    def since(self, job: Job) -> float:
        """The time at which `job`, which must be known, began to wait or to run."""

    def outlook(self, job: Job, now: float) -> Outlook:
        """How `job`, which must be waiting, will get a slot. Changes nothing."""


def hand_over(old: Policy, new: Policy, now: float) -> None:
    """Give all jobs of `old` to `new`, which has no jobs yet. Running jobs keep running, and waiting times count on."""
    for job in old.running():
        new.adopt(job, now)
    for job in sorted(old.queue(), key=lambda job: job.id):
        new.arrive(job, old.since(job))
