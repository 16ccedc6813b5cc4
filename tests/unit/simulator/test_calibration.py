"""Fitting a device, reading and writing its file, and recordings as workloads."""

from __future__ import annotations

import random

import msgspec
import pytest

from ipc.errors import CalibrationFailed, InvalidDevice, InvalidWorkload
from ipc.syscalls import FinishedCall
from kernel.policy.registry import PolicySettings, make_policy
from llmosd.simulator import device, recording
from llmosd.simulator.calibration import Observation, device_of, observation
from llmosd.simulator.device import DeviceModel, find
from llmosd.simulator.least_squares import fit
from llmosd.simulator.recording import Recording
from llmosd.simulator.simulation import Simulation
from llmosd.simulator.workload import WorkloadCall

TRUE = DeviceModel(step=0.02, sequence=0.003, prompt=0.0004, context=2e-6, reading=0.005)


def finished(number: int, submitted: float, ended: float, **fields) -> FinishedCall:
    settings = {
        "number": number,
        "model": "m",
        "pid": 1,
        "program": "ask",
        "program_id": 1,
        "owner": "u",
        "weight": 1.0,
        "priority": 0,
        "deadline": None,
        "prompt": 10,
        "generated": 5,
        "limit": 0,
        "submitted": submitted,
        "started": submitted,
        "first": None,
        "ended": ended,
        "preemptions": 0,
    }
    return FinishedCall(**settings | fields)


def observed(noise: float) -> list[Observation]:
    draw = random.Random(1)
    found = []
    for count in (1, 2, 4, 8, 16):
        for prompt, tokens, reading in ((10, 50, 1), (300, 2, 2), (200, 50, 7), (40, 8, 8)):
            context = sum(count * (prompt + made) for made in range(1, tokens))
            seconds = tokens * TRUE.step + tokens * count * TRUE.sequence
            seconds += count * prompt * TRUE.prompt + context * TRUE.context + reading * TRUE.reading
            error = 1 + noise * draw.uniform(-1, 1)
            found.append(Observation(tokens, tokens * count, count * prompt, context, seconds * error, reading))
    return found


def test_a_fit_finds_the_costs_that_were_there():
    found = device_of(observed(0.0), TRUE)
    costs = [found.step, found.sequence, found.prompt, found.context, found.reading]
    assert costs == [pytest.approx(cost, rel=1e-3) for cost in (0.02, 0.003, 0.0004, 2e-6, 0.005)]
    assert found.error < 1e-3


def test_a_fit_says_how_far_it_is_off():
    found = device_of(observed(0.1), TRUE)
    assert 0.02 < found.error < found.worst < 0.2
    assert found.step == pytest.approx(TRUE.step, rel=0.2)


def test_no_cost_is_below_zero():
    rows = [[1.0, float(number)] for number in range(1, 9)]
    assert fit(rows, [10.0 - number for number in range(1, 9)])[1] == 0.0


def test_what_tells_nothing_apart_is_an_error():
    with pytest.raises(CalibrationFailed, match="apart"):
        device_of([Observation(1, 1, 1, 1, 1.0, 1)] * 6, TRUE)


def test_what_is_simulated_is_fitted_again():
    """A fit to simulated batches, used like recordings of a daemon, finds the device that they ran on."""
    found = []
    for count, prompt, tokens in ((1, 10, 40), (4, 10, 40), (16, 10, 40), (1, 600, 2), (8, 300, 40), (1, 100, 2)):
        calls = (WorkloadCall(prompt=prompt, tokens=tokens),)
        tasks = [recording.WorkloadTask(arrival=0.0, calls=calls)] * count
        run = Simulation(tasks, TRUE, make_policy(PolicySettings(kind="fifo")), 16).run()
        ended = [finished(c.call, 0.0, c.end, prompt=prompt, generated=tokens, started=c.started) for c in run.calls]
        found.append(observation(ended, run.steps, TRUE))
    fitted = device_of(found, TRUE)
    assert fitted.worst < 1e-3
    assert fitted.prompt == pytest.approx(TRUE.prompt, rel=1e-3)


def test_a_device_file_comes_back_as_it_was(tmp_path):
    path = tmp_path / "device.toml"
    written = msgspec.structs.replace(TRUE, name='a "name"', source="here", error=0.05, chunk=7)
    device.write(written, path)
    assert device.read(path) == written


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("step =", "not TOML"),
        ("sequence = 1.0", "missing required field `step`"),
        ("step = -1.0", ">= 0"),
        ("step = 1.0\nspeed = 2", "unknown field `speed`.*allowed: step, sequence"),
        ("step = 0.0", "takes no time"),
    ],
)
def test_what_is_wrong_with_a_device_file_is_named(tmp_path, text, said):
    path = tmp_path / "device.toml"
    path.write_text(text)
    with pytest.raises(InvalidDevice, match=said):
        device.read(path)


def test_devices_that_ship_are_found_by_name(tmp_path):
    assert find("simulated").step == 0.002
    assert find(None).slots >= 1
    with pytest.raises(InvalidDevice, match=r"no device 'gpu'; there are: .*simulated"):
        find("gpu")
    with pytest.raises(InvalidDevice, match="No such file"):
        find(str(tmp_path / "none.toml"))


def test_a_recording_becomes_tasks_that_ask_for_the_same():
    calls = [
        finished(1, 100.0, 103.0, limit=8),
        finished(2, 104.5, 106.0),
        finished(3, 104.5, 105.0),
        finished(4, 105.5, 107.0, priority=3),
        finished(5, 101.0, 102.0, pid=2, program_id=2, owner="v", weight=2.0, deadline=111.0),
        finished(6, 101.0, 102.0, pid=3, error="Killed"),
    ]
    first, second = recording.tasks(Recording(calls=calls))
    assert (first.arrival, second.arrival, second.owner, second.weight, second.deadline) == (0.0, 1.0, "v", 2.0, 10.0)
    assert [(call.after, call.wait) for call in first.calls] == [((), 0.0), ((0,), 1.5), ((0,), 1.5), ((2,), 0.5)]
    assert [(call.limit, call.priority) for call in first.calls] == [(8, 0), (0, 0), (0, 0), (0, 3)]


def test_a_recording_comes_back_as_it_was(tmp_path):
    path = tmp_path / "run.json"
    written = Recording(calls=[finished(1, 0.0, 2.0)], lost=3)
    recording.write(written, path)
    assert recording.read(path) == written


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no JSON", "not a recording"),
        ('{"calls": [{"number": 1}]}', "not a recording"),
        ('{"version": 9}', "version 9; this llmosd reads 1"),
    ],
)
def test_what_is_wrong_with_a_recording_is_named(tmp_path, text, said):
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(InvalidWorkload, match=said):
        recording.read(path)


def test_bad_recordings_are_named(tmp_path):
    with pytest.raises(InvalidWorkload, match="No such file"):
        recording.read(tmp_path / "none.json")
    with pytest.raises(InvalidWorkload, match="can be written"):
        recording.write(Recording(), tmp_path / "no" / "folder.json")
    with pytest.raises(InvalidWorkload, match="no call that was answered"):
        recording.tasks(Recording(calls=[finished(1, 0.0, 1.0, error="Killed")]))
    backwards = tmp_path / "run.json"
    recording.write(Recording(calls=[finished(1, 5.0, 2.0)]), backwards)
    with pytest.raises(InvalidWorkload, match="time runs backwards in call 1"):
        recording.read(backwards)


def test_orders_are_compared_by_pairs():
    one = {1: 1.0, 2: 2.0, 3: 3.0}
    assert recording.order_agreement(one, {1: 1.0, 2: 2.0, 3: 3.0}) == 1.0
    assert recording.order_agreement(one, {1: 3.0, 2: 2.0, 3: 1.0}) == 0.0
    assert recording.order_agreement(one, {1: 1.0, 2: 3.0, 3: 2.0}) == pytest.approx(2 / 3)
    assert recording.order_agreement(one, {1: 1.0, 2: 1.0}) == 1.0
