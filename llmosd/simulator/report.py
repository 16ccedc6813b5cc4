"""The figures of a run, such as latencies, goodput, fairness and missed deadlines, and their means over seeds.

Experiments and the benches compute them from the outcome of a simulation. It prints nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from llmosd.simulator.outcome import DONE, CallOutcome, Run
from llmosd.simulator.statistics import Estimate, estimate, jain, quantile


class Slo(msgspec.Struct, frozen=True, kw_only=True):
    """A service level objective of a call: the first token within `ttft` seconds, then one per `tpot` on average."""

    ttft: float = 2.0
    tpot: float = 0.2

    def met(self, call: CallOutcome) -> bool:
        """Whether `call` met the objective."""
        first = ttft(call)
        return call.outcome == DONE and first is not None and first <= self.ttft and (tpot(call) or 0.0) <= self.tpot


class Spread(msgspec.Struct, frozen=True):
    """The mean and quantiles of a distribution of seconds; nan if there are no values."""

    mean: float
    p50: float
    p95: float
    p99: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one run.

    Times are in seconds. `ttft`: to the first token. `tpot`: between later tokens. `call` and `task`: from submission
    to end. `task_per_token`: `task` divided by all tokens that the task made. The time of a task includes its waits for
    tools.

    `goodput`: calls per second that met the objective; `within`: their share of all calls. `jain`: Jain's index of the
    owners' service over their weights. `gap`: see `outcome.Run`. `misses`: of the tasks with deadlines, the share that
    missed them. `shed`: calls of tasks that the policy shed. `busy`: the share of the time in which the device did
    steps.
    """

    policy: str
    calls: int
    tasks: int
    ttft: Spread
    tpot: Spread
    call: Spread
    task: Spread
    task_per_token: Spread
    goodput: float
    within: float
    tokens_per_second: float
    jain: float
    gap: float | None
    preemptions: int
    swaps: int
    shed: int
    misses: float | None
    busy: float
    seconds: float


Estimates = dict[str, Estimate]


def ttft(call: CallOutcome) -> float | None:
    """Seconds to the first token; None if the call made no token."""
    return None if call.first is None else call.first - call.submitted


def tpot(call: CallOutcome) -> float | None:
    """Mean seconds between tokens; None for fewer than two tokens."""
    return None if call.first is None or call.tokens < 2 else (call.end - call.first) / (call.tokens - 1)


def report(run: Run, slo: Slo) -> Report:
    """The figures of `run`. Latencies cover only calls and tasks that were completed."""
    done = [call for call in run.calls if call.outcome == DONE]
    spans = [(task, end - task.arrival) for task, end, _ in run.tasks if end is not None]
    bound = [(task, end) for task, end, _ in run.tasks if task.deadline is not None]
    missed = sum(end is None or end > task.arrival + (task.deadline or 0.0) for task, end in bound)
    within = sum(map(slo.met, done))
    seconds = run.seconds or math.nan
    return Report(
        policy=run.policy,
        calls=len(run.calls),
        tasks=len(run.tasks),
        ttft=spread([value for call in done if (value := ttft(call)) is not None]),
        tpot=spread([value for call in done if (value := tpot(call)) is not None]),
        call=spread([call.end - call.submitted for call in done]),
        task=spread([span for _, span in spans]),
        task_per_token=spread([span / task.tokens for task, span in spans]),
        goodput=within / seconds,
        within=within / max(len(run.calls), 1),
        tokens_per_second=sum(call.tokens for call in run.calls) / seconds,
        jain=jain(_shares(run)),
        gap=run.gap,
        preemptions=sum(call.preemptions for call in run.calls),
        swaps=run.swaps,
        shed=sum(call.outcome == "shed" for call in run.calls),
        misses=missed / len(bound) if bound else None,
        busy=run.busy / seconds,
        seconds=run.seconds,
    )


def estimates(reports: Sequence[Report]) -> Estimates:
    """The mean of each figure over several runs of one policy, with its interval, by names such as "ttft.p99"."""
    columns: dict[str, list[float]] = {}
    for one in reports:
        for name, value in flat(one).items():
            columns.setdefault(name, []).append(value)
    return {
        name: estimate(values)
        for name, values in columns.items()
        if len(values) == len(reports) and not any(map(math.isnan, values))
    }


def flat(one: Report) -> dict[str, float]:
    """The figures of a report by name. Figures without a value are left out."""
    figures: dict[str, float] = {}
    for name, value in msgspec.structs.asdict(one).items():
        if isinstance(value, Spread):
            figures |= {f"{name}.{part}": share for part, share in msgspec.structs.asdict(value).items()}
        elif isinstance(value, int | float):
            figures[name] = float(value)
    return figures


def spread(values: Sequence[float]) -> Spread:
    """The distribution of `values`."""
    ordered = sorted(values)
    mean = math.fsum(ordered) / len(ordered) if ordered else math.nan
    return Spread(mean, *(quantile(ordered, share) for share in (0.5, 0.95, 0.99)))


def _shares(run: Run) -> list[float]:
    """The service of each owner over its weight."""
    shares: dict[str, float] = {}
    for task, _, service in run.tasks:
        shares[task.owner] = shares.get(task.owner, 0.0) + service / task.weight
    return list(shares.values())
