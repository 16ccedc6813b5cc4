"""Fixtures of the tests of explanations: durations are of the test's virtual time."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.support.system import System


@pytest.fixture(autouse=True)
def virtual_durations(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """All clocks that explanations read are the clock of the loop."""
    for module in ("kernel.core.fiber", "kernel.dispatch.dispatcher"):
        monkeypatch.setattr(f"{module}.perf_counter", system.loop.time)
    clock = SimpleNamespace(monotonic=system.loop.time, time=system.loop.time)
    for module in (
        "kernel.core.suspension",
        "kernel.core.process",
        "kernel.explain.conditions",
        "kernel.explain.notes",
    ):
        monkeypatch.setattr(f"{module}.time", clock)
    monkeypatch.setattr("kernel.processes.exit.time", clock)
