"""The log of the daemon names the process whose step caused a line."""

from __future__ import annotations

from typing import Any

from llmosd.context import Context
from llmosd.daemon.logs import name_process
from tests.support.system import System


def named(**event: Any) -> dict[str, Any]:
    return dict(name_process(None, "info", event))


async def test_a_line_that_a_step_of_an_agent_causes_names_its_process(system: System) -> None:
    async def agent(ctx: Context) -> list[dict[str, Any]]:
        return [named(event="x"), named(event="x", pid=99)]

    process = system.spawn(agent)
    assert await system.result(process) == [
        {"event": "x", "pid": process.pid, "program": "agent"},
        {"event": "x", "pid": 99},
    ]


async def test_a_line_of_the_kernel_or_of_a_client_names_no_process(system: System) -> None:
    async def request() -> dict[str, Any]:
        return named(event="x")

    assert named(event="x") == {"event": "x"}
    assert await system.thread(request()) == {"event": "x"}


def test_a_line_outside_the_loop_names_no_process() -> None:
    assert named(event="x") == {"event": "x"}
