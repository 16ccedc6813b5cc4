"""The report that SIGUSR1 writes: tables and stacks, bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from llmosd.context import Context
from llmosd.daemon import report
from tests.support.system import System


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """The lines of the report, with their events."""
    found: list[dict[str, Any]] = []

    def take(_logger: object, method: str, fields: Any) -> Any:
        found.append(dict(fields) | {"method": method})
        raise structlog.DropEvent

    monkeypatch.setattr(report, "log", structlog.wrap_logger(None, processors=[take]))
    return found


async def inner(ctx: Context) -> None:
    await ctx.receive()


async def waiting(ctx: Context) -> None:
    await inner(ctx)


async def outside(ctx: Context) -> None:
    await asyncio.get_running_loop().create_future()


def of(lines: list[dict[str, Any]], event: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["event"] == event]


async def test_the_report_says_what_each_thread_waits_for_and_where(
    system: System, lines: list[dict[str, Any]]
) -> None:
    one, two = system.spawn(waiting), system.spawn(outside)
    await asyncio.sleep(0.01)
    report.write_report(system.kernel, lambda: {"log_lines": 3})
    assert {line["method"] for line in lines} == {"info"}
    (totals,) = of(lines, "report: totals")
    assert (totals["processes"], totals["log_lines"]) == (2, 3)
    threads = {line["pid"]: line for line in of(lines, "report: thread")}
    assert threads[one.pid]["waits"] == "waiting for a message"
    assert [place.rpartition(" ")[2] for place in threads[one.pid]["stack"]][:2] == ["waiting", "inner"]
    assert threads[two.pid]["future"] == "Future"
    assert "test_report.py" in threads[two.pid]["stack"][0]


async def test_the_report_lists_models_in_use(system: System, lines: list[dict[str, Any]]) -> None:
    system.kernel.resources.runtime("sim").load()
    await asyncio.sleep(0.01)
    report.write_report(system.kernel, dict)
    assert [line["model"] for line in of(lines, "report: model")] == ["sim"]


async def test_the_report_is_bounded(
    system: System, lines: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "MAX_PROCESSES", 5)
    for _ in range(20):
        system.spawn(waiting)
    await asyncio.sleep(0.01)
    report.write_report(system.kernel, dict)
    assert len(of(lines, "report: process")) == 5
    (rest,) = of(lines, "report: more processes")
    assert rest["count"] == len(system.kernel.table.alive) - 5


async def test_a_part_that_fails_does_not_prevent_the_others(system: System, lines: list[dict[str, Any]]) -> None:
    def fails() -> dict[str, Any]:
        raise RuntimeError("no queues")

    system.spawn(waiting)
    report.write_report(system.kernel, fails)
    assert of(lines, "a part of the report failed")
    assert of(lines, "report: process")
