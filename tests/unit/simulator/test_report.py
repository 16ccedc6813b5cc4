"""Reports of runs, and the statistics below them, against values worked out by hand."""

from __future__ import annotations

import math
import random

import pytest

from llmosd.simulator.device import DeviceModel
from llmosd.simulator.gaps import ServiceGap
from llmosd.simulator.outcome import CallOutcome, Run, TaskOutcome
from llmosd.simulator.report import Slo, estimates, flat, report
from llmosd.simulator.statistics import estimate, jain, quantile
from llmosd.simulator.workload import WorkloadCall, WorkloadTask

DEVICE = DeviceModel(step=1.0)


def outcome(number: int, submitted: float, first: float, end: float, tokens: int, **fields) -> CallOutcome:
    settings = {"owner": "", "outcome": "done", "preemptions": 0} | fields
    return CallOutcome(
        number,
        number,
        0,
        settings["owner"],
        0,
        10,
        tokens,
        submitted,
        submitted,
        first,
        end,
        settings["preemptions"],
        settings["outcome"],
    )


def task(arrival: float, tokens: int, **fields) -> WorkloadTask:
    return WorkloadTask(arrival=arrival, calls=(WorkloadCall(prompt=10, tokens=tokens),), **fields)


def run_of(calls: list[CallOutcome], tasks: list[TaskOutcome], **fields) -> Run:
    return Run(policy="fifo", slots=1, device=DEVICE, calls=calls, tasks=tasks, seconds=10.0, **fields)


def test_a_report_by_hand():
    calls = [outcome(0, 0.0, 1.0, 3.0, 5), outcome(1, 1.0, 4.0, 10.0, 4, preemptions=2)]
    tasks = [
        TaskOutcome(task(0.0, 5, owner="a", deadline=5.0), 3.0, 10.0),
        TaskOutcome(task(1.0, 4, owner="b", deadline=5.0), 10.0, 5.0),
    ]
    found = report(run_of(calls, tasks, busy=9.0), Slo(ttft=2.0, tpot=0.5))
    assert (found.ttft.mean, found.ttft.p50, found.ttft.p95) == (2.0, 2.0, pytest.approx(2.9))
    assert found.tpot.mean == pytest.approx((0.5 + 2.0) / 2)
    assert found.call.mean == found.task.mean == 6.0
    assert found.task_per_token.mean == pytest.approx((3 / 5 + 9 / 4) / 2)
    assert (found.goodput, found.within, found.tokens_per_second) == (0.1, 0.5, 0.9)
    assert found.jain == pytest.approx(15**2 / (2 * 125))
    assert (found.preemptions, found.misses, found.busy) == (2, 0.5, 0.9)


def test_a_call_of_one_token_has_no_time_between_tokens():
    found = report(run_of([outcome(0, 0.0, 1.0, 1.0, 1)], [TaskOutcome(task(0.0, 1), 1.0, 1.0)]), Slo())
    assert math.isnan(found.tpot.mean)
    assert found.within == 1.0
    assert "tpot.mean" not in estimates([found])


def test_calls_that_were_ended_are_in_no_latency():
    calls = [outcome(0, 0.0, 1.0, 2.0, 2), outcome(1, 0.0, 1.0, 9.0, 2, outcome="shed")]
    tasks = [TaskOutcome(task(0.0, 2), 2.0, 2.0), TaskOutcome(task(0.0, 2, deadline=3.0), None, 1.0)]
    found = report(run_of(calls, tasks), Slo())
    assert (found.call.mean, found.shed, found.misses, found.calls) == (2.0, 1, 1.0, 2)


def test_figures_of_several_seeds_are_means_with_intervals():
    runs = [run_of([outcome(0, 0.0, 1.0, end, 2)], [TaskOutcome(task(0.0, 2), end, 2.0)]) for end in (2.0, 4.0)]
    reports = [report(run, Slo()) for run in runs]
    found = estimates(reports)["call.mean"]
    assert found.mean == 3.0
    assert found.half == pytest.approx(12.706 * math.sqrt(2) / math.sqrt(2))
    assert "gap" not in flat(reports[0])


def test_quantiles_lie_between_values():
    assert quantile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.5
    assert quantile([1.0, 2.0], 1.0) == 2.0
    assert quantile([7.0], 0.99) == 7.0
    assert math.isnan(quantile([], 0.5))


def test_intervals_hold_the_mean_as_often_as_they_say():
    draw = random.Random(1)
    hits = 0
    for _ in range(1000):
        found = estimate([draw.gauss(5.0, 2.0) for _ in range(6)])
        hits += found.low <= 5.0 <= found.high
    assert 930 <= hits <= 970


def test_one_value_has_no_interval():
    assert math.isinf(estimate([3.0]).half)
    assert str(estimate([3.0])) == "3"


def test_jains_index():
    assert jain([1.0, 1.0, 1.0]) == pytest.approx(1.0)
    assert jain([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
    assert jain([0.0, 0.0]) == 1.0


def test_a_gap_counts_while_both_want_service():
    gap = ServiceGap({"a": 1.0, "b": 2.0})
    gap.wants("a", 1)
    gap.served("a", 100.0)  # b wants nothing yet
    gap.wants("b", 1)
    gap.served("a", 5.0)
    gap.served("b", 20.0)  # 10 over its weight: from 5 ahead to 5 behind
    assert gap.largest == 10.0
    gap.wants("b", -1)
    gap.served("a", 1000.0)
    gap.wants("b", 1)
    gap.served("a", 3.0)
    assert gap.largest == 10.0


def test_one_owner_has_no_gap():
    assert ServiceGap({"a": 1.0}).largest is None
