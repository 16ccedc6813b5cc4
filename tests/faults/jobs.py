"""The jobs of the load: each is one task under one key, with the outcome that it must have after any number of deaths.

The load makes them, and the checks read them. A job records the answers to its clients, and raises `Violation` if two
of them contradict each other.
"""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

from kernel.drivers.simulated.sequence import simulated_token
from llmosd import AgentFailed, LlmosError

PAYLOAD = 20_000  # characters, so that the journal moves its log to the main file now and then
LONG = 120  # tokens, so that parked generations take the memory that others need
MESSAGES = 20
STEPS = 5  # of a durable agent
ASKED = 5  # calls in callbacks
BLOCKED = 20  # functions that block a thread
ODD_CALLS = 48  # of `odd_calls` in the programs
LEFT_SECONDS = 3.0  # for which threads of an agent that has ended go on
COUNTED = 40  # calls of an agent whose file is broken at some starts
KINDS = {
    "work": 30,
    "long": 12,
    "family": 8,
    "broken": 8,
    "order": 8,
    "echo": 12,
    "late": 4,
    "killed": 6,
    "steps": 10,
    "durable_order": 5,
    "callbacks": 6,
    "threads": 3,
    "odd": 4,
    "durable_odd": 4,
    "fragile": 8,
}  # and how often each is drawn


class Violation(Exception):
    """A broken promise. The message names the promise, and the job that broke it."""


class Job:
    """One task.

    `id`: once it was acknowledged. `outcome`: once a client received it. `left`: its client left on purpose.
    """

    def __init__(self, number: int, program: str, arguments: dict[str, Any], *, detach: bool, **options: Any) -> None:
        self.number = number
        self.program = program
        self.arguments = arguments
        self.detach = detach
        self.options = options
        self.given_up = False  # it was refused with a named error, and no client tries again
        self.submissions = 0
        self.left = False
        self.id: str | None = None
        self.outcome: Any = None

    @property
    def key(self) -> str:
        return f"job-{self.number}"

    @property
    def never_accepted(self) -> bool:
        """Whether its deadline passed while its program was loaded, so that no task was made of it."""
        return self.id is None and "deadline" in self.options and self.outcome == ("DeadlineExceeded",)

    def acknowledged(self, task_id: str) -> None:
        if self.id is not None and self.id != task_id:
            raise Violation(f"{self} has the ids {self.id} and {task_id}")
        self.id = task_id

    def ended(self, outcome: Any) -> None:
        """A client received the outcome. Raises `Violation` if it differs from the one received before."""
        if self.outcome is not None and self.outcome != outcome:
            raise Violation(f"{self} had the outcome {self.outcome!r:.200} and then {outcome!r:.200}")
        self.outcome = outcome

    def __str__(self) -> str:
        return f"{self.program} {self.key} (task {self.id}, {'detached' if self.detach else 'attached'})"


def make(number: int, chance: random.Random, file: Path, model: str) -> Job:
    """Job `number`, of a kind and size that `chance` picks."""
    detach = chance.random() < 0.5
    work = {"number": number, "file": str(file), "tokens": 1 + chance.randrange(8)}
    if model != "simulated":
        return Job(number, "work", work, detach=detach)
    kind = chance.choices(list(KINDS), list(KINDS.values()))[0]
    match kind:
        case "long":
            # A more urgent job takes the memory of another, which is swapped out.
            return Job(number, "work", work | {"tokens": LONG}, detach=detach, priority=chance.choice([-10, 0, 10]))
        case "broken":
            return Job(number, "broken", {"number": number}, detach=detach)
        case "order" | "durable_order":
            return Job(number, kind, {"count": MESSAGES}, detach=detach)
        case "steps":
            outside = {"number": number, "count": STEPS, "path": f"{file}-{number}"}
            return Job(number, kind, outside, detach=detach)
        case "echo":
            return Job(number, "echo", {"value": f"{number} " * (PAYLOAD // 6)}, detach=detach)
        case "callbacks":
            return Job(number, kind, {"number": number, "count": ASKED}, detach=detach)
        case "threads":
            return Job(number, kind, {"number": number, "count": BLOCKED, "left": LEFT_SECONDS}, detach=detach)
        case "odd" | "durable_odd":
            return Job(number, kind, {"number": number}, detach=detach)
        case "fragile":
            return Job(number, kind, {"number": number, "count": COUNTED}, detach=detach)
        case "late":
            return Job(number, "waiting", {"number": number}, detach=detach, deadline=0.05)
        case "killed":
            return Job(number, "waiting", {"number": number}, detach=detach)
        case _:
            return Job(number, kind, work, detach=detach)


def expected(job: Job, model: str) -> list[Any]:
    """The outcomes that `job` may have; empty if they cannot be predicted."""
    outcomes: list[Any] = []
    match job.program:
        case "work" if model == "simulated":
            outcomes = [done(_worked(job))]
        case "family" if model == "simulated":
            outcomes = [done([_worked(job)] * 3)]
        case "broken":
            failure = (
                f"load.py:{_line_of('broken on purpose')}: broken: ValueError: broken on purpose, number {job.number}"
            )
            outcomes = [("AgentFailed", failure)]
        case "order" | "durable_order":
            outcomes = [done([list(range(MESSAGES))] * 2)]
        case "steps":
            outcomes = [done([_text(job.number + step, 3) for step in range(STEPS)])]
        case "echo":
            outcomes = [done(job.arguments["value"])]
        case "callbacks":
            steps = range(ASKED)
            outcomes = [done([[job.number - step for step in steps], [job.number + step for step in steps]])]
        case "threads":
            outcomes = [done([job.number, [job.number + step for step in range(BLOCKED)]])]
        case "odd" | "durable_odd":
            outcomes = [done([job.number, ODD_CALLS])]
        case "fragile":
            outcomes = [done([job.number + step for step in range(COUNTED)])]
        case "waiting" if "deadline" in job.options:
            outcomes = [("DeadlineExceeded",)]
        case "waiting":
            outcomes = [("Killed",)]
    if job.left and not job.detach and outcomes:
        outcomes.append(("Killed",))
    return outcomes


def may_be_repaired(job: Job, error: LlmosError) -> bool:
    """Whether a submission was refused because the file of the program is broken at present."""
    return job.program == "fragile" and isinstance(error, AgentFailed) and "cannot be loaded" in error.message


def done(value: Any) -> tuple[str, Any]:
    """The outcome of a task that ended well."""
    return "done", value


@cache
def _line_of(text: str) -> int:
    """The number of the line of the programs in which `text` stands."""
    lines = (Path(__file__).parent.parent / "programs" / "load.py").read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


def _worked(job: Job) -> list[Any]:
    number, tokens = job.number, job.arguments["tokens"]
    return [number, _text(number, tokens)]


def _text(seed: int, tokens: int) -> str:
    return "".join(simulated_token(seed, place)[1] for place in range(tokens))
