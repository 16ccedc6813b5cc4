"""The textbook: five processes with priorities, and formulas beside simulated and measured values."""

from __future__ import annotations

import pytest

from llmosd.simulator.textbook import SLICE, link_seconds, link_seconds_by_packet, textbook


def test_five_processes_run_by_priority_in_fifteen_slices():
    found = textbook(measure=False)
    assert found.order == ["P5", "P4", "P3", "P2", "P1"]
    assert found.slices == {"P5": 5, "P4": 4, "P3": 3, "P2": 2, "P1": 1}
    assert found.milliseconds == 1500
    spans = [(one.start, one.end) for one in found.run.intervals]
    assert spans == [(pytest.approx(SLICE * start), pytest.approx(SLICE * end)) for start, end in _spans()]
    assert all(call.preemptions == 0 for call in found.run.calls)


def _spans() -> list[tuple[int, int]]:
    return [(0, 5), (5, 9), (9, 12), (12, 14), (14, 15)]


def test_the_simulation_agrees_with_the_formulas():
    for one in textbook(measure=False).formulas:
        assert one.measured is None or one.unit == ""  # only measured values are shown as measured
        if one.unit == "ms":
            assert one.simulated == pytest.approx(one.analytic, rel=1e-9), one.name
        else:  # sorting by comparisons needs about n log n of them, and ours needs no multiple of that
            assert 0.7 * one.analytic < one.simulated < 1.1 * one.analytic
            assert 0.7 * one.analytic < one.measured < 1.5 * one.analytic


def test_the_slots_of_the_kernel_take_no_less_time_for_real():
    for one in textbook(measure=True).formulas:
        if one.measured is not None and one.unit == "ms":
            assert one.measured >= 0.99 * one.analytic, one.name  # how much more depends on the machine


@pytest.mark.parametrize(("length", "distance", "bandwidth"), [(1, 0.0, 8.0), (4000, 2e8, 1e6), (10**6, 5e7, 1e9)])
def test_packets_arrive_when_the_formula_says(length, distance, bandwidth):
    assert link_seconds_by_packet(length, distance, bandwidth) == pytest.approx(
        link_seconds(length, distance, bandwidth)
    )
