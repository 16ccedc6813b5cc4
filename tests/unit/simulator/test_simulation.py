"""The core of the simulator against cases worked out by hand, and against queueing theory."""

from __future__ import annotations

import itertools
import random

import msgspec
import pytest

from ipc.errors import InvalidWorkload
from kernel.policy.registry import PolicySettings, make_policy
from llmosd.simulator.device import DeviceModel
from llmosd.simulator.generators import Shape, agents, bursty, poisson, programs
from llmosd.simulator.outcome import DONE, ENDED, Run
from llmosd.simulator.report import Slo, report
from llmosd.simulator.simulation import Simulation
from llmosd.simulator.statistics import estimate
from llmosd.simulator.workload import WorkloadCall, WorkloadTask, chain

SECOND = DeviceModel(step=1.0)  # a step a second, whatever it holds


def task(arrival: float, tokens: int, prompt: int = 0, **fields: object) -> WorkloadTask:
    return WorkloadTask(arrival=arrival, calls=(WorkloadCall(prompt=prompt, tokens=tokens),), **fields)


def simulate(
    tasks: list[WorkloadTask], device: DeviceModel = SECOND, slots: int = 1, kind: str = "fifo", **options
) -> Run:
    timeline = options.pop("timeline", False)
    policy = make_policy(PolicySettings(kind=kind, **options))
    return Simulation(tasks, device, policy, slots, timeline=timeline).run()


def times(run: Run) -> list[tuple[float, float, float]]:
    """Start, first token and end of each call, in order of arrival."""
    return [(call.started, call.first, call.end) for call in sorted(run.calls, key=lambda call: call.call)]


def test_one_slot_serves_in_order_of_coming():
    run = simulate([task(0.0, 3), task(0.5, 2), task(20.0, 1)])
    assert times(run) == [(0.0, 1.0, 3.0), (3.0, 4.0, 5.0), (20.0, 21.0, 21.0)]
    assert (run.seconds, run.busy, run.steps) == (21.0, 6.0, 6)


def test_a_call_that_comes_during_a_step_joins_the_next():
    run = simulate([task(0.0, 3), task(0.5, 3)], slots=2)
    assert times(run) == [(0.0, 1.0, 3.0), (1.0, 2.0, 4.0)]


def test_the_costs_of_a_step_add_up():
    device = DeviceModel(step=1.0, sequence=0.1, prompt=0.01, context=0.001)
    run = simulate([task(0.0, 3, prompt=10), task(0.0, 2, prompt=20)], device, slots=2)
    first = 1 + 2 * 0.1 + 30 * 0.01  # both prompts are read whole
    second = 1 + 2 * 0.1 + 0.001 * (11 + 21)  # a context is the prompt and the tokens made so far
    third = 1 + 0.1 + 0.001 * 12
    assert times(run) == [
        (0.0, pytest.approx(first), pytest.approx(first + second + third)),
        (0.0, pytest.approx(first), pytest.approx(first + second)),
    ]


def test_a_step_that_reads_costs_more():
    device = DeviceModel(step=1.0, reading=0.5)
    assert times(simulate([task(0.0, 2, prompt=3)], device)) == [(0.0, 1.5, 2.5)]


def test_prompts_are_read_in_chunks():
    device = DeviceModel(step=1.0, prompt=0.01, chunk=100)
    run = simulate([task(0.0, 2, prompt=250), task(0.0, 1, prompt=50)], device, slots=2)
    # 100, 100, then the last 50 together with the other prompt; then a token alone.
    assert times(run) == [(0.0, pytest.approx(6.0), pytest.approx(7.0)), (0.0, pytest.approx(6.0), pytest.approx(6.0))]
    assert run.steps == 4


def test_a_prompt_holds_up_those_who_make_tokens_by_no_more_than_is_set():
    device = DeviceModel(step=1.0, prompt=0.01, chunk=500, slower=1.5, tile=32)
    run = simulate([task(0.0, 20), task(1.5, 1, prompt=500)], device, slots=2)
    # Beside the other call a step of 1.5 s reads 50 tokens: ten steps, from second 2 on.
    assert times(run)[1] == (2.0, pytest.approx(17.0), pytest.approx(17.0))


def test_many_steps_at_once_are_the_same_as_one_by_one():
    """Tasks that end before they make their call change nothing, but break up the long runs of steps."""
    device = DeviceModel(step=0.01, sequence=0.002, prompt=0.0005, context=1e-5, chunk=64, slower=1.4)
    tasks = programs(3, 40, 0.8, device, 4, Shape())
    alone = simulate(tasks, device, slots=4)
    late = (WorkloadCall(prompt=0, tokens=1, wait=1e6),)
    ticks = [WorkloadTask(arrival=alone.seconds * part / 4000, calls=late, deadline=1e-9) for part in range(4000)]
    broken = simulate(tasks + ticks, device, slots=4)
    assert len(broken.calls) == len(alone.calls)
    for one, other in zip(alone.calls, broken.calls, strict=True):
        assert (one.task, one.place, one.tokens) == (other.task, other.place, other.tokens)
        assert (one.first, one.end) == (pytest.approx(other.first), pytest.approx(other.end))


@pytest.mark.parametrize("growth", [0.0, 1e-4])
def test_no_step_begins_after_something_is_due(growth):
    device = DeviceModel(step=0.1, context=growth)
    run = simulate([task(0.0, 1000), task(7.77, 1)], device, slots=2)
    start = times(run)[1][0]
    assert 7.77 <= start < 7.77 + 0.1 + growth * 80 + 1e-9


def test_calls_of_a_task_follow_each_other():
    calls = (
        WorkloadCall(prompt=0, tokens=2),
        WorkloadCall(prompt=0, tokens=3, wait=1.0, after=(0,)),
        WorkloadCall(prompt=0, tokens=1, after=(0,)),
        WorkloadCall(prompt=0, tokens=1, wait=0.5, after=(1, 2)),
    )
    run = simulate([WorkloadTask(arrival=1.0, calls=calls)], slots=4)
    assert [call.submitted for call in sorted(run.calls, key=lambda call: call.place)] == [1.0, 4.0, 3.0, 7.5]
    assert run.tasks[0].finished == 8.5
    assert run.tasks[0].service == 7


def test_a_preempted_call_goes_on_where_it_was():
    run = simulate([task(0.0, 4), task(1.5, 2, priority=5)], kind="priority", aging=0.0, timeline=True)
    assert times(run) == [(0.0, 1.0, 6.0), (2.0, 3.0, 4.0)]
    assert [call.preemptions for call in sorted(run.calls, key=lambda call: call.call)] == [1, 0]
    assert [(one.call, one.start, one.end) for one in run.intervals] == [(1, 0.0, 2.0), (2, 2.0, 4.0), (1, 4.0, 6.0)]


def test_a_call_preempted_while_its_prompt_is_read_reads_the_rest():
    device = DeviceModel(step=1.0, chunk=10)
    run = simulate([task(0.0, 1, prompt=40), task(1.5, 1, priority=5)], device, kind="priority", aging=0.0)
    assert times(run) == [(0.0, 5.0, 5.0), (2.0, 3.0, 3.0)]


def test_a_task_ends_at_its_deadline():
    run = simulate([task(0.0, 100, deadline=5.0), task(0.0, 3)])
    assert [(call.outcome, call.end) for call in run.calls] == [(ENDED, 5.0), (DONE, 8.0)]
    assert run.calls[0].tokens == 5
    assert report(run, Slo()).misses == 1.0


def test_memory_is_waited_for_in_order():
    device = DeviceModel(step=1.0, memory=100)
    run = simulate([task(0.0, 2, prompt=60), task(0.0, 2, prompt=60), task(0.0, 2, prompt=10)], device, slots=3)
    assert [end for _, _, end in times(run)] == [2.0, 4.0, 4.0]


def test_a_parked_call_is_swapped_out_for_one_that_needs_its_memory():
    device = DeviceModel(step=1.0, memory=100, swap=0.5)
    tasks = [task(0.0, 10, prompt=80), task(1.5, 4, prompt=80, priority=5)]
    run = simulate(tasks, device, kind="priority", aging=0.0, timeline=True)
    # Preempted at 2, written until 2.5; the other runs until 6.5, then reading back takes until 7.
    assert times(run) == [(0.0, 1.0, 15.0), (2.0, 3.5, 6.5)]
    assert run.swaps == 1


def test_what_never_fits_is_an_error_and_no_endless_loop():
    with pytest.raises(InvalidWorkload, match="memory for 200 tokens, but the device has 100"):
        simulate([task(0.0, 100, prompt=100)], DeviceModel(step=1.0, memory=100))


@pytest.mark.parametrize("kind", ["fifo", "priority"])
def test_the_same_seed_gives_the_same_bytes(kind):
    device = DeviceModel(step=0.01, sequence=0.002, prompt=0.0005, chunk=64)

    def once() -> bytes:
        run = simulate(programs(7, 30, 0.9, device, 4, Shape(), owners=3), device, 4, kind, timeline=True)
        return msgspec.msgpack.encode(run)

    assert once() == once()


@pytest.mark.parametrize("slots", [1, 4])
def test_no_slot_idles_while_a_call_waits(slots):
    tasks = poisson(5, 300, 1.0, SECOND, slots, Shape(prompt=1, tokens=8))
    run = simulate(tasks, SECOND, slots, timeline=True)
    assert all(sample.running == slots for sample in run.samples if sample.waiting)
    assert max(sample.waiting for sample in run.samples) > 2
    assert sum(call.tokens for call in run.calls) == sum(one.tokens for one in tasks)


def exponential(rate: float, draw: random.Random, count: int) -> list[float]:
    now, found = 0.0, []
    for _ in range(count):
        now += draw.expovariate(rate)
        found.append(now)
    return found


def mean_wait(tasks: list[WorkloadTask], device: DeviceModel) -> float:
    """Seconds that calls wait for the slot on average, without the first tenth."""
    calls = sorted(simulate(tasks, device).calls, key=lambda call: call.call)
    counted = calls[len(calls) // 10 :]
    return sum(call.started - call.submitted for call in counted) / len(counted)


def test_waits_are_those_of_an_m_d_1_queue():
    """Pollaczek and Khinchine: with load r and service of 1 s, a mean wait of r / (2 (1 - r))."""
    load, device = 0.7, DeviceModel(step=0.01)
    waits = []
    for seed in range(10):
        arrivals = exponential(load, random.Random(seed), 2000)
        waits.append(mean_wait([task(arrival, 100) for arrival in arrivals], device))
    found = estimate(waits)
    assert found.low < load / (2 * (1 - load)) < found.high


def test_waits_are_those_of_an_m_m_1_queue():
    """With exponential service of 1 s on average, a mean wait of r / (1 - r)."""
    load, device = 0.6, DeviceModel(step=0.01)
    waits = []
    for seed in range(10):
        draw = random.Random(seed)
        tasks = [task(arrival, max(round(100 * draw.expovariate(1.0)), 1)) for arrival in exponential(load, draw, 2000)]
        waits.append(mean_wait(tasks, device))
    found = estimate(waits)
    assert found.low < load / (1 - load) < found.high


def test_generators_make_the_load_they_are_asked_for():
    device = DeviceModel(step=0.01, sequence=0.002, prompt=0.0002)
    for make_tasks in (poisson, bursty):
        runs = [simulate(make_tasks(seed, 800, 0.5, device, 4, Shape()), device, 4) for seed in range(3)]
        # Half of the tokens that the device makes in full batches: at half the load fewer sequences share a step.
        rates = [sum(call.tokens for call in run.calls) / run.seconds for run in runs]
        full = [simulate(_at_once(make_tasks(seed, 800, 0.5, device, 4, Shape())), device, 4) for seed in range(3)]
        shares = [
            rate * run.seconds / sum(call.tokens for call in run.calls) for rate, run in zip(rates, full, strict=True)
        ]
        assert 0.4 < sum(shares) / len(shares) < 0.6


def _at_once(tasks: list[WorkloadTask]) -> list[WorkloadTask]:
    return [msgspec.structs.replace(one, arrival=0.0) for one in tasks]


def test_bursts_make_queues_longer():
    device = DeviceModel(step=0.01)
    even, uneven = (
        report(simulate(make_tasks(1, 500, 0.6, device, 4, Shape()), device, 4), Slo())
        for make_tasks in (poisson, bursty)
    )
    assert uneven.ttft.mean > 2 * even.ttft.mean


def test_agents_never_have_more_than_one_call_under_way():
    run = simulate(agents(1, 6, Shape(), turns=5, owners=2), DeviceModel(step=0.01), slots=2)
    assert len(run.calls) == 30
    for number in range(6):
        calls = sorted((call for call in run.calls if call.task == number), key=lambda call: call.place)
        assert all(before.end <= after.submitted for before, after in itertools.pairwise(calls))


def test_programs_have_a_heavy_tail():
    tasks = programs(1, 2000, 0.9, SECOND, 4, Shape(prompt=1, tokens=1, spread=0.0))
    lengths = sorted(len(one.calls) for one in tasks)
    assert lengths[len(lengths) // 2] <= 5
    assert lengths[-1] > 50
    assert sum(lengths[-200:]) > 0.3 * sum(lengths)  # a tenth of the programs makes a third of the calls


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ([], "empty"),
        ([task(-1.0, 1)], "arrives at -1"),
        ([task(0.0, 0)], "makes 0 tokens"),
        ([task(0.0, 1, prompt=-1)], "negative"),
        ([task(0.0, 1, deadline=0.0)], "passed when it arrives"),
        ([task(0.0, 1, weight=0.0)], "a weight is above 0"),
        ([WorkloadTask(arrival=0.0, calls=())], "makes no call"),
        ([WorkloadTask(arrival=0.0, calls=(WorkloadCall(prompt=0, tokens=1, after=(0,)),))], "earlier calls"),
        ([WorkloadTask(arrival=0.0, calls=(WorkloadCall(prompt=0, tokens=9, limit=5),))], "more than its limit"),
    ],
)
def test_a_workload_that_makes_no_sense_is_named(wrong, said):
    with pytest.raises(InvalidWorkload, match=said):
        simulate(wrong)


def test_bad_loads_and_slots_are_named():
    with pytest.raises(InvalidWorkload, match="load of 0"):
        poisson(1, 5, 0.0, SECOND, 1, Shape())
    with pytest.raises(InvalidWorkload, match="no tasks"):
        poisson(1, 0, 0.5, SECOND, 1, Shape())
    with pytest.raises(InvalidWorkload, match="0 slots"):
        simulate([task(0.0, 1)], slots=0)


def test_a_chain_waits_for_each():
    calls = chain([WorkloadCall(prompt=0, tokens=1), WorkloadCall(prompt=0, tokens=1, wait=2.0)])
    assert [call.after for call in calls] == [(), (0,)]
