"""What a run shows: latencies, goodput, fairness, preemptions and missed deadlines; and the same over many seeds.

Made by the commands and the benches from what a simulation, or the daemon, recorded. It prints nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from llmosd.simulator.outcome import DONE, CallOutcome, Run
from llmosd.simulator.statistics import Estimate, estimate, jain, quantile


class Slo(msgspec.Struct, frozen=True, kw_only=True):
    """What a user expects of a call: the first token after `ttft` seconds at most, then one in `tpot` on average."""

    ttft: float = 2.0
    tpot: float = 0.2

    def met(self, call: CallOutcome) -> bool:
        """Whether `call` was as expected."""
        first = ttft(call)
        return call.outcome == DONE and first is not None and first <= self.ttft and (tpot(call) or 0.0) <= self.tpot


class Spread(msgspec.Struct, frozen=True):
    """A distribution of seconds; nan where there are no values."""

    mean: float
    p50: float
    p95: float
    p99: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one run.

    Times in seconds: `ttft` to the first token, `tpot` between tokens after it, `call` and `task` from submission to
    end, `task_per_token` the same over all tokens that the task made; waits for tools count as its time.

    `goodput`: calls a second that meet the objective, `within` their share of all. `jain`: index of fairness of the
    service of owners over their weights. `gap`: see `outcome.Run`. `misses`: the share of tasks with a deadline that
    were not done by it, `shed` the calls that were given up by the policy. `busy`: the share of time in steps.
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
    """Seconds to the first token, if there was one."""
    return None if call.first is None else call.first - call.submitted


def tpot(call: CallOutcome) -> float | None:
    """Seconds between the tokens after the first, if there were any."""
    return None if call.first is None or call.tokens < 2 else (call.end - call.first) / (call.tokens - 1)


def report(run: Run, slo: Slo) -> Report:
    """What `run` shows. Latencies are of calls and tasks that were done."""
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
    """Each figure of several runs of one policy as a mean with its interval, by names such as "ttft.p99"."""
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
    """The figures of a report by name; what there is none of is left out."""
    figures: dict[str, float] = {}
    for name, value in msgspec.structs.asdict(one).items():
        if isinstance(value, Spread):
            figures |= {f"{name}.{part}": share for part, share in msgspec.structs.asdict(value).items()}
        elif isinstance(value, int | float):
            figures[name] = float(value)
    return figures


def spread(values: Sequence[float]) -> Spread:
    """How `values` are distributed."""
    ordered = sorted(values)
    mean = math.fsum(ordered) / len(ordered) if ordered else math.nan
    return Spread(mean, *(quantile(ordered, share) for share in (0.5, 0.95, 0.99)))


def _shares(run: Run) -> list[float]:
    """The service of each owner over its weight."""
    shares: dict[str, float] = {}
    for task, _, service in run.tasks:
        shares[task.owner] = shares.get(task.owner, 0.0) + service / task.weight
    return list(shares.values())
